"""A local page on which to play with a saved result: dense and fast side by side, with their times.

The page is served to this machine alone, and made with NiceGUI, the extra ``play``. Gradio, the other candidate, cannot
be installed beside a Pillow of today (6.31 asks for one below 13), and adds 130 MB to what Diff-ES needs anyway, pandas
among it, where NiceGUI 3.18 adds 72 MB. NiceGUI brings its scripts and fonts along: tests/evaluation/test_pages.py
holds that no request leaves the machine.
"""

from __future__ import annotations

import socket
import warnings

from ...utils.errors import DiffESError, Extra
from .studio import Studio

HOST = "127.0.0.1"


def serve(studio: Studio, listening: socket.socket) -> None:
    """Serve the page until Ctrl-C.

    Raises:
        DiffESError: the extra is not installed.
    """
    try:
        from .page import server
    except ModuleNotFoundError as error:
        expected, found = "what the extra `play` installs", f"no {error.name}"
        raise DiffESError("diff-es play", expected=expected, found=found, remedy=Extra.PLAY.remedy) from error
    with warnings.catch_warnings():  # to find its server NiceGUI looks at every object, PyTorch's deprecated ones too
        warnings.filterwarnings("ignore", ".*reduce_op", FutureWarning)
        server(studio, HOST).run(sockets=[listening])


def listen(port: int) -> socket.socket:
    """A port of the loopback interface, where nobody but this machine comes.

    Args:
        port: 0 takes any that is free.

    Raises:
        DiffESError: it is taken.
    """
    try:
        return socket.create_server((HOST, port))
    except (OSError, OverflowError) as error:
        found, remedy = f"{error}", "Take another --port; 0 takes any that is free."
        raise DiffESError("--port", expected="a port that is free", found=found, remedy=remedy) from error
