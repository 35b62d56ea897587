"""`diff-es play`: a page of this machine on which to try a result."""

from __future__ import annotations

from contextlib import closing
from typing import Annotated

import typer

from ..evaluation.play import listen, serve
from ..evaluation.play.studio import Studio
from .console import out, reopened
from .options import Artefact, Moved, OnDevice


def play_command(
    folder: Artefact,
    port: Annotated[int, typer.Option(min=0, max=65535, help="of this machine; 0 takes any that is free")] = 7860,
    model: Moved = None,
    device: OnDevice = None,
) -> None:
    """A page for the browser of this machine: dense and fast side by side, for any class or prompt, seed and point."""
    with closing(listen(port)) as listening:
        fast, pipe = reopened(folder, model, device)
        studio = Studio(pipe, fast)
        out.print(f"Open http://{listening.getsockname()[0]}:{listening.getsockname()[1]} ; Ctrl-C ends it.")
        serve(studio, listening)
