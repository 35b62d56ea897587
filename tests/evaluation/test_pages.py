"""The report and the page of `diff-es play` in a real browser, with real clicks: each does what it says, and no request
leaves the machine.

Chromium has to be there (CONTRIBUTING.md); where it is not, these tests fail.
"""

from __future__ import annotations

import shutil
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from fastapi import FastAPI
from PIL import Image
from playwright.sync_api import Browser, Page, expect, sync_playwright
from tests.helpers.tiny import LITTLE, settings, tiny

from diff_es import Compressed, compress
from diff_es.compression.reopening import found_again
from diff_es.compression.study import prepare
from diff_es.evaluation.assemble import Provenance, picture, publish, tell
from diff_es.evaluation.evaluate import Conduct, Extent, evaluate
from diff_es.evaluation.play import HOST, listen, serve
from diff_es.evaluation.play.page import Server, server
from diff_es.evaluation.play.studio import Studio
from diff_es.pipelines.loading import load
from diff_es.pipelines.probes import Probe
from diff_es.pipelines.sampling import decode, sample
from diff_es.utils.errors import DiffESError
from diff_es.utils.progress import Reporter
from diff_es.utils.seeds import derive_seed

pytestmark = pytest.mark.filterwarnings("ignore:.*reduce_op:FutureWarning")  # as in `serve`

QUIET = Reporter(quiet=True)
COMMAND = "diff-es evaluate 'my result' --noises 6"
FLAGS = (
    "--no-sandbox",  # CI is root
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
PHONE, DESK = {"width": 390, "height": 844}, {"width": 1280, "height": 800}


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        pytest.fail("no Chromium: these tests click through real pages. Debian, Ubuntu: apt-get install chromium")
    with sync_playwright() as driver:
        started = driver.chromium.launch(executable_path=chromium, args=list(FLAGS))
        yield started
        started.close()


@contextmanager
def opened(browser: Browser, address: str, **options: Any) -> Iterator[Page]:
    """A page, with nothing kept from others, that says nothing on its console and asks nothing of any other place."""
    context, wrong = browser.new_context(**options), list[str]()

    def ours(url: str) -> bool:
        return url.startswith((address, "data:", "blob:", address.replace("http:", "ws:")))

    context.route(lambda url: not ours(url), lambda route: route.abort())
    page = context.new_page()
    page.on("console", lambda message: wrong.append(message.text) if message.type in ("error", "warning") else None)
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("request", lambda request: None if ours(request.url) else wrong.append(request.url))
    page.on("websocket", lambda socket: None if ours(socket.url) else wrong.append(socket.url))
    page.set_default_timeout(20_000)
    page.goto(address)
    yield page
    context.close()
    assert wrong == []


@pytest.fixture(scope="session")
def result() -> Compressed:
    """A front of two points."""
    return compress(tiny(), 0.6, settings(**LITTLE, front=(0.8,)))


@pytest.fixture(scope="module")
def report(result: Compressed, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The address of the report on both points."""
    study, extent = prepare(tiny(), result.report.settings), Extent(noises=6, images=6, rounds=2, batch=2, random=3)
    found, others = (found_again(result.report),), tuple(found_again(other.report) for other in result.others)
    evaluation = evaluate(study, found, None, extent, Conduct(QUIET), saved=result)
    made = Provenance(1.0, COMMAND, result.report.sensitivity.table, front=others)
    folder = tmp_path_factory.mktemp("report")
    publish(folder, tell(study, "tiny", found, evaluation, extent, made))
    return (folder / "report.html").as_uri()


def shown(page: Page, key: str) -> None:
    """All that the page has of a point is to be seen, and of no other."""
    expect(page.locator(f'.pick[data-point="{key}"]').first).to_have_attribute("aria-pressed", "true")
    expect(page.locator(".point:visible")).to_have_count(1)
    expect(page.locator(f'.point[data-point="{key}"]')).to_be_visible()
    expect(page.get_by_role("combobox", name="Contender")).to_have_value(key)
    chosen = page.locator(".cases input").evaluate_all("all => all.findIndex(one => one.checked)")
    for image, row in (("over", key), ("under", "dense-1")):
        source = page.locator(f'tr[data-images="{row}"] td img').nth(chosen).get_attribute("src")
        expect(page.locator(f".split .{image}")).to_have_attribute("src", source or "none")


def test_the_slider_moves_by_mouse_keyboard_and_finger(browser: Browser, report: str) -> None:
    with opened(browser, report, viewport=PHONE, has_touch=True) as page:
        slider, over = page.get_by_role("slider"), page.locator(".split .over")
        slider.scroll_into_view_if_needed()
        box = page.locator(".split").bounding_box()
        assert box is not None

        def left(share: float) -> float:
            return box["x"] + share * box["width"]

        middle = box["y"] + box["height"] / 2
        expect(over).to_have_css("clip-path", "inset(0px 0px 0px 50%)")
        page.mouse.move(left(0.5), middle)
        page.mouse.down()
        page.mouse.move(left(0.25), middle, steps=4)
        page.mouse.up()
        expect(over).to_have_css("clip-path", "inset(0px 0px 0px 25%)")
        line = page.locator(".line").bounding_box()
        assert line is not None
        assert line["x"] + line["width"] / 2 == pytest.approx(left(0.25), abs=3)  # under the hand that drags it
        slider.press("ArrowRight")
        expect(over).to_have_css("clip-path", "inset(0px 0px 0px 26%)")
        page.touchscreen.tap(left(0.8), middle)
        expect(over).to_have_css("clip-path", "inset(0px 0px 0px 80%)")


def test_a_point_is_chosen_by_click_key_or_name(browser: Browser, report: str) -> None:
    with opened(browser, report) as page:
        shown(page, "diff-es-0.6")
        page.locator('.pick[data-point="diff-es-0.8"]').first.click()
        shown(page, "diff-es-0.8")
        point = page.locator(".point:visible")
        expect(point.get_by_role("heading")).to_have_text("Diff-ES, at 0.8 of the compute")
        expect(point.get_by_role("img", name="Diff-ES at 0.8 of the compute. Level by stage")).to_be_visible()
        page.locator('.pick[data-point="fewer-steps-0.6"]').first.press("Enter")
        shown(page, "fewer-steps-0.6")
        expect(point).to_contain_text("The dense model at every step; only fewer of them.")
        page.get_by_role("combobox", name="Contender").select_option("uniform-0.6")
        shown(page, "uniform-0.6")


def test_worst_cases_come_first_and_any_is_chosen(browser: Browser, report: str) -> None:
    with opened(browser, report) as page:
        told = page.locator(".told")
        notes = page.locator('tr[data-images="diff-es-0.6"] td small').all_inner_texts()
        closeness = [float(note.removesuffix(" dB")) for note in notes]
        assert closeness[:4] == sorted(closeness)[:4]
        expect(told).to_contain_text(f"one of the worst: SNR {notes[0]}.")
        page.locator(".cases label").nth(4).click()
        expect(told).to_contain_text(f"a typical one: SNR {notes[4]}.")
        shown(page, "diff-es-0.6")
        page.keyboard.press("ArrowRight")
        expect(told).to_contain_text(f"SNR {notes[5]}.")


def test_the_command_is_copied(browser: Browser, report: str) -> None:
    with opened(browser, report, permissions=["clipboard-read", "clipboard-write"]) as page:
        page.get_by_role("button", name="Copy").click()
        expect(page.get_by_role("button", name="Copied")).to_be_visible()
        assert page.evaluate("navigator.clipboard.readText()") == COMMAND


def test_without_its_script_the_report_is_there_to_read(browser: Browser, report: str) -> None:
    with opened(browser, report, java_script_enabled=False) as page:
        expect(page.locator(".split")).to_be_hidden()
        expect(page.get_by_role("button")).to_have_count(0)
        points, rows = page.locator(".point:visible"), page.locator(".measures tbody tr:has(td)")
        assert points.count() == rows.count() - 1 > 5  # all but the dense model
        expect(page.get_by_text("Diff-ES, all budgets up to 0.8:")).to_be_visible()  # the front was searched at once


@pytest.fixture(scope="session")
def studio(result: Compressed, model_folder: Path) -> Studio:
    return Studio(load(str(model_folder)), result)


@contextmanager
def running(serving: Server) -> Iterator[tuple[str, Callable[[], None]]]:
    """The address of a server, and what ends it."""
    with listen(0) as listening:
        thread = threading.Thread(target=serving.run, kwargs={"sockets": [listening]})
        thread.start()

        def end() -> None:
            serving.should_exit = True
            thread.join()

        while not serving.started:
            assert thread.is_alive()
            time.sleep(0.02)
        yield f"http://{HOST}:{listening.getsockname()[1]}/", end
        end()


@pytest.fixture(scope="session")
def play(studio: Studio) -> Iterator[str]:
    """The address of the page of `diff-es play`: NiceGUI has one in a process, whose tests may come to it in pieces."""
    with running(server(studio, HOST)) as (address, _):
        yield address


def choose(page: Page, label: str, option: str) -> None:
    page.get_by_label(label).click()
    page.get_by_role("option", name=option).click()


def test_play_generates_what_was_asked_for_and_lets_it_be_saved(
    browser: Browser, play: str, studio: Studio, result: Compressed, model_folder: Path
) -> None:
    with opened(browser, play) as page:
        choose(page, "Class", "monster")
        page.get_by_label("Seed").fill("7")
        choose(page, "Point of the front", studio.names()[1])
        page.get_by_role("button", name="Generate").click()
        for name in ("Dense", "Fast"):
            expect(page.get_by_role("img", name=f"{name}: monster, seed 7")).to_be_visible()
        times = page.locator(".time").all_inner_texts()
        assert [float(each.removesuffix(" s")) > 0 for each in times] == [True, True]
        expect(page.locator(".told")).to_contain_text("as fast")
        expect(page.get_by_role("button", name="Generate")).to_be_enabled()
        saved = []
        for button in page.get_by_role("button", name="Download").all():
            with page.expect_download() as download:
                button.click()
            saved.append((download.value.suggested_filename, Image.open(download.value.path())))
    pipe, probe = load(str(model_folder)), Probe(derive_seed(7, "sample", 0), 2)
    dense = picture(decode(pipe, sample(pipe, [probe], result.sampling))[0])
    with result.front.points[1].routed(pipe):
        fast = picture(decode(pipe, sample(pipe, [probe], result.sampling))[0])
    assert [name for name, _ in saved] == ["dense.png", "fast.png"]
    assert [image.tobytes() for _, image in saved] == [dense.tobytes(), fast.tobytes()]
    assert dense.tobytes() != fast.tobytes()


def test_play_says_what_is_wrong(browser: Browser, play: str, studio: Studio) -> None:
    with opened(browser, play) as page:
        page.get_by_label("Seed").fill("")
        page.get_by_role("button", name="Generate").click()
        expect(page.get_by_role("alert")).to_have_text("Say what to generate, and a seed.")
        page.get_by_label("Seed").fill("1")

        def meanwhile(share: float) -> None:
            if not told:
                told.append(share)
                page.get_by_role("button", name="Generate").click()
                expect(page.get_by_role("alert")).to_contain_text("another one is running. Wait for the other to end")

        told = list[float]()
        studio.generate(0, 0, 0, meanwhile)
        page.get_by_role("button", name="Generate").click()
        expect(page.get_by_role("img", name="Dense: floor, seed 1")).to_be_visible()
        expect(page.get_by_role("alert")).to_be_hidden()


def test_play_counts_its_work_and_is_for_this_machine_alone(studio: Studio, play: str) -> None:
    heard = list[float]()
    studio.generate(0, 0, 0, heard.append)
    assert heard == sorted(heard)
    assert heard[-1] == pytest.approx(1.0)
    strange = urllib.request.Request(play, headers={"Host": "elsewhere.example"})
    with pytest.raises(urllib.error.HTTPError, match="400"):
        urllib.request.urlopen(strange)
    port = int(play.rsplit(":", 1)[1].strip("/"))
    with pytest.raises(DiffESError, match="--port: expected a port that is free"):
        listen(port)


def test_play_ends_without_waiting_for_images(result: Compressed, model_folder: Path) -> None:
    pipe = load(str(model_folder))
    studio, heard = Studio(pipe, result), list[float]()
    with running(Server(uvicorn.Config(FastAPI()), studio)) as (_, end):

        def meanwhile(share: float) -> None:
            heard.append(share)
            end()

        assert studio.generate(0, 0, 0, meanwhile) is None
    assert len(heard) == 1, "the call that was running, and no other"
    assert studio.generate(0, 0, 0, heard.append) is None
    assert not pipe.transformer._forward_hooks


def test_play_names_the_extra_that_is_missing(studio: Studio, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "diff_es.evaluation.play.page")
    monkeypatch.setitem(sys.modules, "nicegui", None)
    with (
        listen(0) as listening,
        pytest.raises(DiffESError, match=r"found no nicegui. Install it: pip .* 'diff-es\[play\]'"),
    ):
        serve(studio, listening)


@pytest.mark.parametrize(("theme", "size"), [("light", PHONE), ("dark", DESK)], ids=["light-phone", "dark-desk"])
def test_both_pages_follow_the_theme_and_fit(
    browser: Browser, report: str, play: str, theme: str, size: dict[str, int]
) -> None:
    for address in (report, play):
        with opened(browser, address, viewport=size, color_scheme=theme) as page:
            expect(page.get_by_role("heading", level=1)).to_be_visible()
            ground, ink = (
                page.evaluate(f"getComputedStyle(document.body).{of}") for of in ("backgroundColor", "color")
            )
            assert (lightness(ground) > lightness(ink)) == (theme == "light")
            assert page.evaluate("document.documentElement.scrollWidth") <= size["width"]


def lightness(colour: str) -> float:
    """Of `rgb(1, 2, 3)`."""
    return sum(map(float, colour.removeprefix("rgb(").removesuffix(")").split(",")))
