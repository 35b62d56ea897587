"""The method on one page (``compress``), the search that it runs, and its result."""

from .compress import Run, compress
from .effort import Effort, with_effort
from .enabling import disable, enable
from .export import Exported, export
from .forecast import Forecast
from .planning import forecast, within_hours
from .result import Compressed, Front, load
from .settings import Levers, Settings

__all__ = [
    "Compressed",
    "Effort",
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
    "with_effort",
    "within_hours",
]
