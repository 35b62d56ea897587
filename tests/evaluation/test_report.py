"""The report: the page is whole, closed and escaped; its sentences follow the rows; its pictures are well-formed."""

import base64
import hashlib
import json
import math
import re
from dataclasses import replace
from html import unescape
from html.parser import HTMLParser
from xml.etree import ElementTree

import pytest
import torch
from PIL import Image

from diff_es.compression.final import Found
from diff_es.evaluation.assemble import curves_of
from diff_es.evaluation.cases import chosen, judged_by
from diff_es.evaluation.report import (
    Case,
    CaseKind,
    Curve,
    Heat,
    Row,
    Sensed,
    Story,
    Strip,
    findings,
    headline,
    meaning,
    render,
    svg,
)
from diff_es.evaluation.report import heat as heats
from diff_es.evaluation.report.prose import figures
from diff_es.search import Candidate, Generation

VOID = {"meta", "link", "img", "br", "hr", "input"}
STEPPED = "fewer steps of the dense model"
TIMES, DASH = "\u00d7", "\u2013"


def row(contender: str, budget: float = 0.7, snr_db: float | None = 20.0, **changes: float | str | None) -> Row:
    plain = Row(contender, budget, 20, 0.691, 298.76, 4.12, 1.379, 1.442, snr_db, 19.21, 27.13, 15.404, 99_100_000)
    return replace(plain, **changes)  # type: ignore[arg-type]


DENSE = Row("dense", 1.0, 20, 1.0, 412.31, 3.1, 1.0, 1.0, None, None, None, None, 38_100_000)
ROWS = (
    DENSE,
    row("fewer-steps", snr_db=25.81, steps=14, weight_bytes=38_100_000),
    row("uniform", snr_db=22.94),
    row("mosaicdiff", snr_db=23.3),
    row("random", snr_db=24.12),
    row("diff-es", snr_db=24.14, latency_ms=1308.96),
)
HEAT = Heat(
    "diff-es",
    0.7,
    "one unit",
    ((0,), (2,), (8,)),
    8,
    (2, 1, 0),
    ((999, 700), (650, 400), (350, 0)),
    ("whole denoiser",),
)

CASES = (Case(5, CaseKind.WORST, "abacus"), Case(2, CaseKind.TYPICAL))
COMMAND = "diff-es demo --out 'my demo' --seed 0"


def story(**changes: object) -> Story:
    tile = Image.new("RGBA", (32, 32), (200, 30, 30, 128))
    strips = (Strip("dense", 1.0, (tile, tile)), Strip("diff-es", 0.7, (tile, tile), (8.5, 24.25)))
    curves = (Curve("joint, 0.7", ((16, 20.0), (32, 24.1))),)
    facts, sensed = (("Seed", "0"),), Sensed(((0.1,), (0.2,), (0.7,)), ("whole denoiser",))
    plain = Story("Tiles", "tiles32-dit", facts, ROWS, strips, CASES, (HEAT,), curves, ("A note.",), sensed, COMMAND)
    return replace(plain, **changes)  # type: ignore[arg-type]


class Reader(HTMLParser):
    """Keeps the text and the attributes, and fails on a tag that is not closed in order."""

    def __init__(self, page: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(page)
        self.close()
        assert self.open == [], f"never closed: {self.open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag, f"</{tag}> closes another tag"

    def handle_data(self, data: str) -> None:
        if not self.open or self.open[-1] not in ("style", "script"):
            self.text += data.replace("\u00a0", " ")


def one_heat(stages: int, units: int) -> Heat:
    levels = tuple(tuple((s + u) % 9 for u in range(units)) for s in range(stages))
    return Heat(
        "diff-es",
        0.7,
        "any",
        levels,
        8,
        (1,) * stages,
        ((9.0, 0.5),) * stages,
        tuple(f"unit.{u}" for u in range(units)),
    )


def one_image(image: Image.Image, **changes: object) -> Story:
    return story(strips=(Strip("dense", 1.0, (image,)),), cases=CASES[:1], **changes)


PAGES = {
    "whole": story(),
    "rows alone": story(strips=(), cases=(), heats=(), curves=(), notes=(), facts=(), sensed=None, command=""),
    "nothing": Story("Empty", "none", (), ()),
    "dense alone": story(rows=(DENSE,)),
    "one strip": one_image(Image.new("L", (512, 256))),
    "palette image": one_image(Image.new("P", (16, 16))),
    "one point": story(curves=(Curve("short", ((1, 3.0),)), Curve("none", ()), Curve("never", ((1, -math.inf),)))),
    "many curves": story(curves=tuple(Curve(f"curve {i}", ((1, 1.0), (2, float(i)))) for i in range(12))),
    "smallest heat map": story(heats=(one_heat(1, 1),)),
    "largest heat map": story(heats=(one_heat(50, 30),)),
    "not finite": story(rows=(row("diff-es", snr_db=math.inf), row("uniform", snr_db=math.nan))),
}


@pytest.mark.parametrize("name", PAGES)
def test_page_is_balanced_accessible_and_loads_nothing(name: str) -> None:
    page = render(PAGES[name])
    tags = Reader(page).tags
    for tag, attributes in tags:
        for key in ("src", "href"):
            assert (attributes.get(key) or "data:").startswith(("data:", "#")), f"{tag} loads {attributes[key]}"
        assert tag != "script" or not attributes
        assert tag != "img" or attributes["alt"] or "src" not in attributes  # what the script fills
        assert tag != "th" or attributes["scope"]
        assert tag != "svg" or attributes.get("aria-label") or attributes.get("aria-hidden")
    assert not re.search(r"url\(|@import|https?://", page)
    ids = [attributes["id"] for _, attributes in tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    assert {attributes["aria-labelledby"] for _, attributes in tags if "aria-labelledby" in attributes} <= set(ids)
    for picture in re.findall(r"<svg.*?</svg>", page, re.DOTALL):
        assert_drawn(picture)


def test_the_only_script_that_runs_is_the_page_s_own() -> None:
    page = render(story())
    (script,) = re.findall(r"<script>(.*?)</script>", page, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'\"" in page


@pytest.mark.parametrize(
    ("levels", "steps", "sentence"),
    [
        (
            ((0,), (2,), (8,)),
            (2, 1, 0),
            "The first stage runs dense, stage 1 runs at level 2 of 8 and the last stage is "
            "not run. Of 3 steps, most are in stage 0: 2.",
        ),
        (
            ((3, 0), (2, 4), (0, 0), (0, 0)),
            (1, 2, 2, 2),
            "The first two stages run at levels 0 to 4 of 8 and the last two stages run dense. 7 steps in all.",
        ),
        (((0,),), (1,), "Every stage runs dense. 1 step in all."),
        (
            ((1,), (0,), (0,), (1,)),
            (1, 0, 0, 2),
            "The first stage runs at level 1 of 8, stages 1 to 2 are not run and "
            "the last stage runs at level 1 of 8. Of 3 steps, most are in stage 3: 2.",
        ),
    ],
)
def test_a_schedule_says_what_it_means(
    levels: tuple[tuple[int, ...], ...], steps: tuple[int, ...], sentence: str
) -> None:
    names, times = tuple(f"unit {u}" for u in range(len(levels[0]))), ((9.0, 1.0),) * len(steps)
    heat = Heat("diff-es", 0.7, "t", levels, 8, steps, times, names)
    assert meaning.of_schedule(heat) == sentence
    assert sentence in Reader(render(story(heats=(heat,)))).text


def test_sensitivities_are_shares_of_a_whole_and_say_where_it_hurts() -> None:
    sensed = Sensed(((0.05, 0.01), (0.25, 0.69)), ("attention", "feedforward"))
    told = meaning.of_sensitivities(sensed)
    assert told.startswith("Stage 1 makes 94% of the error and stage 0 only 6%; by unit, feedforward makes most, 70%.")
    assert told in Reader(render(story(sensed=sensed))).text
    written = [element.text for element in assert_drawn(heats.share_map("t", sensed.shares, sensed.units)).iter("text")]
    assert [entry for entry in written if entry in ("5", "25", "69")] == ["5", "25", "69"]
    with pytest.raises(ValueError, match="expected a share of each of 2 units by stage"):
        replace(sensed, shares=((0.5,), (0.5,)))


def test_worst_noises_come_first_and_then_those_around_the_median() -> None:
    found = chosen(torch.tensor([9.0, 1.0, 8.0, 2.0, 7.0, 3.0, 6.0, 4.0, 5.0]), 5)
    assert [number for number, _ in found] == [1, 3, 5, 7, 8]
    assert [kind for _, kind in found] == [CaseKind.WORST] * 3 + [CaseKind.TYPICAL] * 2
    spread = chosen(torch.arange(100.0).flip(0), 8)
    assert [99 - number for number, _ in spread] == [0, 1, 2, 3, 48, 49, 50, 51]
    for noises in range(1, 12):
        for count in range(1, 12):
            numbers = [number for number, _ in chosen(torch.rand(noises), count)]
            assert len(numbers) == len(set(numbers)) == min(noises, count)
    assert chosen(torch.rand(3), 0) == ()
    assert judged_by((DENSE, row("diff-es", 0.7), row("diff-es", 0.5), row("uniform", 0.5))) == 2


def test_a_time_that_is_not_to_be_believed_is_hollow_and_wins_nothing() -> None:
    rows = (DENSE, row("uniform", 0.7), row("diff-es", 0.7, latency_ms=1.25, doubt="busy", speedup_low=1.1))
    page = render(story(rows=rows))
    assert 'class="marker diff-es hollow"' in page
    assert "<strong>1.2</strong>" not in page
    assert "speed not measured reliably: busy" in Reader(page).text
    assert "hollow" not in re.sub(r"<style>.*?</style>", "", render(story()), flags=re.DOTALL)


def test_every_figure_of_every_row_is_on_the_page() -> None:
    table = re.findall(r'<table class="measures">.*?</table>', render(story()), re.DOTALL)[0]
    lines = [re.findall(r"<td>(.*?)</td>", line) for line in table.split('<th scope="row">')[1:]]
    written = [[re.sub(r"</?strong>", "", cell) for cell in line] for line in lines]
    assert written == [
        [
            f"{r.steps}",
            f"{r.macs_ratio:.3f}",
            f"{r.latency_ms:,.1f} ± {r.latency_spread:.1f}",
            f"{r.speedup:.2f}",
            f"{r.denoiser_speedup:.2f}",
            *(DASH if db is None else f"{db:.1f}" for db in (r.snr_db, r.own_snr_db, r.psnr_db)),
            DASH if r.frechet_distance is None else f"{r.frechet_distance:.2f}",
            f"{r.weight_bytes / 1e6:.1f}",
        ]
        for r in ROWS
    ]
    assert re.findall(r'<tr class="([a-z-]+)">', table) == [r.contender for r in ROWS]
    assert [name in table for name in ("At the full compute", "At 0.7 of the compute")] == [True, True]


def test_best_of_a_budget_is_bold_and_what_is_written_alike_is_alike() -> None:
    bold = re.findall(r"<strong>(.*?)</strong>", render(story()))
    assert bold.count("25.8") == 1  # SNR
    assert bold.count("298.8") == 4  # latency: equal in four rows, slower in the last
    assert bold.count("38.1") == 1  # weights, in the 0.7 group; dense has no rival in its own
    assert "27.1" not in bold  # PSNR is the same everywhere: nothing won


def test_names_are_escaped() -> None:
    evil = "<script>alert('x')</script>"
    heat = replace(HEAT, title=evil, units=(evil,))
    told = story(title=evil, model=evil, facts=((evil, evil),), heats=(heat,), notes=(evil,))
    page = render(replace(told, curves=(Curve(evil, ((1, 1.0), (2, 2.0))),)))
    assert page.count("<script") == 1  # ours
    assert unescape(page).count(evil) >= 8
    assert Reader(page).text.count(evil) >= 8


def test_missing_figures_are_dashes_with_a_note_and_only_then() -> None:
    assert "marks what was not or cannot be measured" in Reader(render(story())).text
    full = render(story(rows=(row("uniform"), row("diff-es"))))
    assert "marks what was not" not in full
    assert f"<td>{DASH}</td>" not in full
    assert render(story(rows=(row("uniform", frechet_distance=None), row("diff-es")))).count(f"<td>{DASH}</td>") == 1


def test_small_images_grow_by_whole_factors_and_large_ones_shrink() -> None:
    shown = {}
    for side in (32, 100, 512):
        page = render(one_image(Image.new("RGB", (side, side))))
        image = next(attributes for tag, attributes in Reader(page).tags if tag == "img" and attributes["alt"])
        shown[side] = image["width"], image.get("class")
    assert shown == {32: ("96", "pixels"), 100: ("100", None), 512: ("160", None)}


def test_findings_say_above_below_and_level() -> None:
    rows = (row("uniform", snr_db=22.9), row("mosaicdiff", snr_db=24.5), row("random", snr_db=24.12))
    told = findings((*rows, row("diff-es", snr_db=24.14, frechet_distance=None)))
    assert told == (
        "At 0.7 of the compute, Diff-ES (24.1 dB) is 1.2 dB above uniform pruning, "
        "0.4 dB below MosaicDiff-like pruning and level with the best random schedule.",
        f"At 0.7 of the compute, Diff-ES runs 1.38{TIMES} as fast as the dense model (the denoiser alone 1.44{TIMES}), "
        f"where its MACs ratio promises 1.45{TIMES}.",
    )


@pytest.mark.parametrize(
    ("fewer", "sentence"),
    [
        (25.8, f"taking {STEPPED} is closer to the reference than Diff-ES: 25.8 against 24.1 dB."),
        (18.5, f"Diff-ES is closer to the reference than taking {STEPPED}: 24.1 against 18.5 dB."),
        (24.06, f"Diff-ES and {STEPPED} are equally close to the reference: 24.1 dB."),
    ],
)
def test_findings_do_not_hide_fewer_steps(fewer: float, sentence: str) -> None:
    rows = (row("fewer-steps", snr_db=fewer), row("diff-es", snr_db=24.14))
    assert f"At 0.7 of the compute, {sentence}" in findings(rows)
    beaten = "Taking fewer steps of the dense model is closer: 25.8 dB."
    assert (beaten in headline(rows)) == (fewer == 25.8)
    assert f"At 0.7 of the compute, {sentence}" in Reader(render(story(rows=rows))).text


def test_findings_compare_within_a_budget_and_only_what_was_measured() -> None:
    rows = (row("uniform", 0.5, 30.0), row("random", 0.7, None), row("diff-es", 0.7), row("diff-es", 0.5, None))
    told = " ".join(findings(tuple(replace(r, frechet_distance=None) for r in rows)))
    assert "uniform" not in told
    assert "random" not in told
    assert "dB" not in told
    assert told.index("At 0.7") < told.index("At 0.5")
    assert findings((DENSE, row("uniform"))) == ()
    assert headline((DENSE,)) == "No Diff-ES schedule was evaluated in this run."


def test_findings_set_the_distance_to_real_data_beside_fidelity() -> None:
    rows = (replace(DENSE, frechet_distance=12.4), row("diff-es", frechet_distance=15.0), row("random", 0.5))
    expected = "(lower is closer) is 15.00 for Diff-ES, against 12.40 for the dense model."
    assert f"At 0.7 of the compute, the Fréchet distance to real data {expected}" in findings(rows)


@pytest.mark.parametrize(
    ("tried", "sentence"),
    [
        ({"random": 32, "diff-es": 185}, "The best of 32 random schedules; Diff-ES tried 185."),
        ({"random": 185, "diff-es": 185}, "The best of 185 random schedules; Diff-ES tried 185."),
        ({"random": 32}, "The best of 32 random schedules."),
        ({}, "The best of some schedules drawn at random."),  # rows of an earlier version
    ],
)
def test_random_search_says_of_how_many_it_is_the_best(tried: dict[str, int], sentence: str) -> None:
    rows = tuple(replace(one, tried=tried.get(one.contender)) for one in ROWS)
    told = " ".join(Reader(render(story(rows=rows))).text.split())
    assert told.count(sentence) == 1  # beside its point
    assert f"Random: {sentence[0].lower()}{sentence[1:]}" in told


def test_random_search_says_so_of_each_budget_where_they_differ() -> None:
    tried = {("random", 0.7): 32, ("diff-es", 0.7): 185, ("random", 0.5): 32, ("diff-es", 0.5): 1800}
    told = Reader(render(story(rows=tuple(row(*one, tried=count) for one, count in tried.items()), heats=()))).text
    loose, tight = (f"the best of 32 random schedules; Diff-ES tried {count}." for count in ("185", "1,800"))
    expected = f"Random: at 0.7 of the compute, {loose} At 0.5 of the compute, {tight}"
    assert expected in " ".join(told.split())
    assert [told.count(f"T{one[1:]}") for one in (loose, tight)] == [1, 1]


def searched(limit: float, *best: float) -> Found:
    """What a search came back with whose best score went like this."""
    history = tuple(Generation(i, score, score, score, 8 * (i + 1)) for i, score in enumerate(best))
    return Found(limit, Candidate.of(((0,),)), best[-1], best[-1], (), history, 8 * len(best))


def test_budgets_that_were_searched_together_share_one_curve_which_is_of_no_single_one() -> None:
    curves = curves_of((searched(0.5, 20.0, 34.5), searched(0.7, 20.0, 34.5)), (searched(0.5, 9.0), searched(0.7, 9.8)))
    together = Curve("Diff-ES, all budgets up to 0.7", ((8, 20.0), (16, 34.5)))
    assert curves == [together, Curve("Random at 0.5", ((8, 9.0),)), Curve("Random at 0.7", ((8, 9.8),))]
    assert [one.title for one in curves_of((searched(0.5, 20.0), searched(0.7, 21.0)), ())] == [
        "Diff-ES at 0.5",
        "Diff-ES at 0.7",
    ]
    told = Reader(render(story(curves=tuple(curves)))).text
    assert "Diff-ES, all budgets up to 0.7: 34.5 dB after 16 evaluations" in told
    assert "All end before timesteps are moved and finals are judged" in " ".join(told.split())


def test_headline_takes_the_tightest_budget() -> None:
    rows = (row("uniform", 0.7, 10.0), row("diff-es", 0.7, 30.0), row("uniform", 0.5, 17.1), row("diff-es", 0.5, 16.0))
    said = "Diff-ES matches the reference to 16.0 dB, 1.1 dB below uniform pruning, and samples"
    expected = f"At 0.5 of the compute, {said} 1.38{TIMES} as fast as the dense model."
    assert headline(rows) == expected
    assert headline((*rows, row("diff-es", 0.4, 9.0))) == expected  # where nothing else is compared


def test_a_speed_up_that_is_not_to_be_believed_is_nowhere_to_be_seen() -> None:
    why = "15.90 is more than its MACs can give, 2.00"
    rows = (DENSE, row("uniform", 0.5), row("diff-es", 0.5, speedup=15.9, denoiser_speedup=17.3, doubt=why))
    page = unescape(render(one_image(Image.new("RGB", (8, 8)), rows=rows, heats=())))
    assert "17.3" not in page
    assert page.count("15.9") == page.count(why) > 0
    assert "<td>unreliable</td>" in page
    assert headline(rows).endswith("and how much faster it samples could not be measured reliably.")
    assert f"At 0.5 of the compute, how much faster Diff-ES runs could not be measured reliably: {why}." in findings(
        rows
    )
    assert figures(rows)[-1] == (DASH, "", f"speed-up not measured reliably: {why}")
    assert headline((replace(rows[-1], snr_db=None),)) == (
        "At 0.5 of the compute, how much faster it samples could not be measured reliably."
    )


def test_rows_travel_through_json() -> None:
    for r in ROWS:
        assert Row(**json.loads(json.dumps(r.to_json()))) == r


def test_errors_name_what_was_found_and_expected() -> None:
    with pytest.raises(
        ValueError, match=r"unknown contender 'magic'; expected one of dense, fewer-steps, trailing, uniform"
    ):
        row("magic")
    with pytest.raises(ValueError, match=r"found 1 steps, 3 timesteps, \[1\] levels per stage; expected 3 steps"):
        replace(HEAT, steps=(2,))
    with pytest.raises(ValueError, match=r"expected 0 to 7"):
        replace(HEAT, most=7)
    with pytest.raises(ValueError, match=r"rows: two for 'uniform' at budget 0.7"):
        story(rows=(row("uniform"), row("uniform")))
    with pytest.raises(ValueError, match=r"strips hold \[1, 2\] images; expected one of each of 2 cases"):
        story(strips=(*story().strips, Strip("random", 0.7, (Image.new("RGB", (8, 8)),))))


def assert_drawn(picture: str) -> ElementTree.Element:
    """Well-formed, and every number is finite."""
    root = ElementTree.fromstring(picture)
    values = [value for element in root.iter() for key, value in element.attrib.items() if key != "aria-label"]
    assert not re.search(r"\b(nan|inf)\b", " ".join(values))
    return root


@pytest.mark.parametrize(
    "points",
    [
        (),
        ((1.0, 2.0),),
        ((1.0, 2.0), (1.0, 2.0)),
        ((0.0, 0.0), (0.0, 0.0)),
        ((1e-9, -1e9), (1e9, 1e9)),
        ((1.0, math.inf), (math.nan, 2.0), (3.0, 4.0)),
    ],
)
def test_plots_draw_any_points(points: tuple[svg.Point, ...]) -> None:
    series = [svg.Series("a < b & c", "diff-es", "M0 0Z", points, tuple(svg.Mark(f"<{p}>") for p in points))]
    finite = [point for point in points if all(map(math.isfinite, point))]
    for draw in (svg.scatter, svg.steps):
        root = assert_drawn(draw('"<title>"', "x & y", "dB", series))
        assert sum(element.get("class") == "marker diff-es" for element in root.iter()) == len(finite)


@pytest.mark.parametrize(("stages", "units", "most"), [(1, 1, 0), (1, 30, 8), (50, 1, 8), (50, 30, 8)])
def test_heat_map_shows_every_level(stages: int, units: int, most: int) -> None:
    levels = [[(s * u) % (most + 1) for u in range(units)] for s in range(stages)]
    names, taken = [f"<unit {u}>" for u in range(units)], [s % 2 for s in range(1, stages + 1)]
    root = assert_drawn(heats.heat_map("t", levels, most, taken, [(1000.0, 0.25)] * stages, names))
    drawn = [element.get("class") for element in root.iter("rect")]
    assert drawn.count("level") == units * sum(taken)
    assert drawn.count("idle") == units * (stages - sum(taken))
    assert_drawn(heats.heat_legend(most))


@pytest.mark.parametrize("values", [(0.5, 0.7), (3.0,), (0.0, 0.0), (-5.0, 1e6), (1.0, 1.0 + 1e-12)])
def test_axis_holds_its_values_and_a_few_round_ticks(values: tuple[float, ...]) -> None:
    axis = svg.axis("any", values)
    assert axis.low < min(values) <= max(values) < axis.high
    assert 2 <= len(axis.ticks) <= 9
    assert all(axis.low <= tick <= axis.high for tick in axis.ticks)
    assert len({axis.write(tick) for tick in axis.ticks}) == len(axis.ticks)


def test_labels_keep_apart_and_in_order() -> None:
    assert svg.apart((10, 100), 14, 0, 200) == (10, 100)
    assert svg.apart((50, 51, 50), 14, 0, 200) == (50, 78, 64)
    assert svg.apart((195, 199), 14, 0, 200) == (186, 200)
