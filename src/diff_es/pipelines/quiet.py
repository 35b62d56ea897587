"""Without what diffusers says to each of many calls."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from diffusers.utils import logging


@contextmanager
def hushed() -> Iterator[None]:
    """Without diffusers' bars and remarks, which would come with every call of many."""
    verbosity, bar = logging.get_verbosity(), logging.is_progress_bar_enabled()
    quiet = verbosity >= logging.ERROR  # a change of it empties the caches of all loggers
    if not quiet:
        logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if not quiet:
            logging.set_verbosity(verbosity)
        if bar:
            logging.enable_progress_bar()
