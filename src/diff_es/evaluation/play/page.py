"""The page itself: what is asked for on the left, the two images on the right."""

from __future__ import annotations

import base64
import io
import socket
from functools import partial
from importlib import resources

import uvicorn
from fastapi import FastAPI
from nicegui import run, ui
from PIL import Image
from starlette.middleware.trustedhost import TrustedHostMiddleware

from ...utils.errors import FOREIGN, DiffESError, said
from .studio import Pair, Studio, Taken

LARGEST_SEED = 2**53 - 1
"""The largest whole number that a browser keeps exact."""

_SMALL = 128  # side of an image below which its pixels are shown as squares
_ICON = "<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 8 8'><path fill='#d55e00' d='M0 8L8 0V8Z'/></svg>"


class Server(uvicorn.Server):
    """Ends without waiting for images that nobody will see."""

    def __init__(self, config: uvicorn.Config, studio: Studio) -> None:
        super().__init__(config)
        self._studio = studio

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._studio.end()
        await super().shutdown(sockets)


def server(studio: Studio, host: str) -> Server:
    """What serves the page, to whoever asks for it by a name of this machine."""
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=[host, "localhost"])
    ui.run_with(
        app,
        root=lambda: _Page(studio).build(),
        title="Diff-ES play",
        favicon=_ICON,
        dark=None,  # as the browser is set
        language="en-US",
        tailwind=False,
        show_welcome_message=False,
    )
    return Server(uvicorn.Config(app, host=host, log_level="warning", timeout_graceful_shutdown=1), studio)


class _Frame:
    """Where one of the two images comes to stand, with its time and a button that saves it."""

    def __init__(self, name: str) -> None:
        self._name, self._png = name, b""
        with ui.element("figure"):
            with ui.element("figcaption"):
                ui.label(name).classes("name")
                self._time = ui.label().classes("time")
            self._stand = ui.element("div").classes("stand")
            self._save = ui.button("Download", on_click=self._download, color=None).props("flat no-caps")
            self._save.set_visibility(False)

    def show(self, taken: Taken, alt: str) -> None:
        self._png = _png(taken.image)
        self._time.set_text(f"{taken.seconds:.2f} s")
        self._stand.clear()
        with self._stand:
            image = ui.element("img").classes("pixels" if max(taken.image.size) < _SMALL else "")
            image.props["src"] = f"data:image/png;base64,{base64.b64encode(self._png).decode('ascii')}"
            image.props["alt"] = f"{self._name}: {alt}"
        self._save.set_visibility(True)

    def _download(self) -> None:
        ui.download.content(self._png, f"{self._name.lower()}.png", "image/png")


class _Page:
    """One visitor's page."""

    def __init__(self, studio: Studio) -> None:
        self._studio, self._share = studio, 0.0

    def build(self) -> None:
        ui.add_css(resources.files(__package__).joinpath("page.css").read_text(encoding="utf-8"))
        ui.colors(primary="#0072b2")
        with ui.element("div").classes("play"):
            with ui.element("header"):
                ui.html("<h1>Diff-ES play</h1>", sanitize=False)
                ui.label(self._studio.origin).classes("soft")
            with ui.element("div").classes("bench"):
                self._build_questions()
                with ui.element("section"):
                    with ui.element("div").classes("pair"):
                        self._dense, self._fast = _Frame("Dense"), _Frame("Fast")
                    self._told = ui.label("The same noise, twice: choose, and generate.").classes("told")
                    self._told.props["aria-live"] = "polite"
        self._ticking = ui.timer(0.1, self._tick, active=False)

    def _build_questions(self) -> None:
        studio = self._studio
        asks, points = studio.asks(), dict(enumerate(studio.names()))
        with ui.element("section").classes("questions"):
            first = next(iter(asks))
            self._ask: ui.select | ui.textarea | None = None
            if isinstance(first, str):
                self._ask = ui.textarea("Prompt", value=first).props("outlined autogrow")
            elif first is not None:
                self._ask = ui.select(asks, value=first, label="Class", with_input=True).props("outlined")
            self._seed = ui.number("Seed", value=0, min=0, max=LARGEST_SEED, precision=0).props("outlined")
            self._point = ui.select(points, value=studio.asked, label="Point of the front").props("outlined")
            self._button = ui.button("Generate", on_click=self._generate).props("unelevated no-caps")
            self._bar = ui.linear_progress(0.0, show_value=False).props("instant-feedback rounded")
            self._bar.set_visibility(False)
            self._error = ui.label().classes("error")
            self._error.props["role"] = "alert"

    def _tick(self) -> None:
        self._bar.set_value(round(self._share, 3))

    def _heard(self, share: float) -> None:
        self._share = share

    async def _generate(self) -> None:
        condition = None if self._ask is None else self._ask.value
        point, seed = self._point.value, self._seed.value
        if seed is None or condition == "" or (condition is None and self._ask is not None):
            self._error.set_text("Say what to generate, and a seed.")
            return
        self._share = 0.0
        self._busy(True)
        try:
            pair = await run.io_bound(partial(self._studio.generate, point, condition, int(seed), self._heard))
        except DiffESError as error:
            self._error.set_text(str(error))
        except (*FOREIGN, MemoryError) as error:
            self._error.set_text(said(error))
        else:
            if pair is not None:  # it is where the server ends meanwhile
                self._show(pair, f"{'' if self._ask is None else self._name(condition)} seed {int(seed)}".strip())
        finally:
            self._busy(False)

    def _name(self, condition: int | str | None) -> str:
        return f"{self._studio.asks().get(condition, condition)},"

    def _show(self, pair: Pair, alt: str) -> None:
        self._dense.show(pair.dense, alt)
        self._fast.show(pair.fast, alt)
        ratio = pair.dense.seconds / pair.fast.seconds
        self._told.set_text(
            f"This once {ratio:.2f}\u00d7 as fast. One image is no measurement: `diff-es bench` takes many."
        )

    def _busy(self, busy: bool) -> None:
        self._ticking.active = busy
        self._bar.set_value(0.0)
        self._bar.set_visibility(busy)
        self._button.set_enabled(not busy)
        if busy:
            self._error.set_text("")


def _png(image: Image.Image) -> bytes:
    held = io.BytesIO()
    image.save(held, "PNG")
    return held.getvalue()
