"""The method on one page (``compress``), the search that it runs, and its result."""

from .compress import Run, compress
from .enabling import disable, enable
from .export import Exported, export
from .forecast import Forecast, forecast
from .result import Compressed, Front, load
from .settings import Levers, Settings

__all__ = [
    "Compressed",
    "Exported",
    "Forecast",
    "Front",
    "Levers",
    "Run",
    "Settings",
    "compress",
    "disable",
    "enable",
    "export",
    "forecast",
    "load",
]
