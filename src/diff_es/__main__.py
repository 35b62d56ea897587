"""``diff-es``, and ``python -m diff_es``: hears signals before anything that takes long is imported."""

from __future__ import annotations

import os
import signal
import sys
from typing import NoReturn

from .cli.stopped import Stopped, tell
from .utils.signals import Listener


def main() -> None:
    """Run the command line. A signal that ends it is one line, and exit code 128 + its number."""
    listener = Listener(_leave)
    from .cli.app import main as run

    try:
        run(listener)
    except KeyboardInterrupt:  # between two lines, before or after the command itself
        stopped = Stopped(listener.heard or signal.SIGINT)
        tell(stopped)
        sys.exit(stopped.exit_code)


def _leave(number: signal.Signals) -> NoReturn:
    stopped = Stopped(number)
    tell(stopped)
    os._exit(stopped.exit_code)


if __name__ == "__main__":
    main()
