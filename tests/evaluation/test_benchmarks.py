"""Each benchmark runs to its end at its smallest, in this process, and says what its text promises."""

from __future__ import annotations

import json
import os
import re
import runpy
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import TypeAlias

import pytest
import torch
from tests.helpers.tiny import tiny

from diff_es.evaluation.assemble import contact_sheet
from diff_es.evaluation.report import Row
from diff_es.evaluation.rivals.solvers import Spacing
from diff_es.utils.files import write_text

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
SAMPLED = ("--steps", 4, "--stages", 2, "--calibration-samples", 2)
SEARCHED = ("--seeds", 0, "--noises", 2, "--held-out-noises", 2, "--population", 2, "--generations", 1)

Bench: TypeAlias = Callable[..., str]


@pytest.fixture(scope="module")
def one_block(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The least model."""
    folder = tmp_path_factory.mktemp("least") / "model"
    tiny(layers=1).save_pretrained(folder)
    return folder


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], one_block: Path) -> Bench:
    """Runs a script on the tiny model, of one block, as a command line does, and gives what it prints."""

    def run(name: str, *options: object, model: bool = True) -> str:
        chosen = ["--model", str(one_block)] if model else []
        monkeypatch.syspath_prepend(str(BENCHMARKS))
        monkeypatch.setattr(sys, "argv", [name, *chosen, *map(str, options)])
        capsys.readouterr()
        runpy.run_path(str(BENCHMARKS / f"{name}.py"), run_name="__main__")
        return capsys.readouterr().out

    return run


def rows(output: str) -> list[list[str]]:
    """The cells of the rows of all tables, each as many as its header has."""
    found, lines, columns = list[list[str]](), output.splitlines(), 0
    for line, after in zip(lines, [*lines[1:], ""], strict=True):
        cells = [cell.strip() for cell in line.removeprefix("|").removesuffix("|").split("|")]
        if after.startswith("|---"):
            columns = len(cells)
        elif line.startswith("|") and not line.startswith("|---"):
            assert len(cells) == columns, line
            found.append(cells)
    return found


def names(output: str, column: int = 0) -> list[str]:
    return [row[column] for row in rows(output)]


def test_ablation(bench: Bench, tmp_path: Path) -> None:
    tiny(layers=3).save_pretrained(tmp_path)
    methods = ("OBS order, no compensation", "OBS, ridge (the default)", "blocks left out, fitted linear map")
    options = ("--steps", 3, "--calibration-samples", 2, "--noises", 1, "--levels", 2, "--model", tmp_path)
    assert names(bench("ablation", *options, "--methods", *methods)) == list(methods)


def test_caches(bench: Bench, tmp_path: Path, model_folder: Path) -> None:
    results, ours = tmp_path / "results.jsonl", tmp_path / "ours"
    search = ("--steps", 4, "--levers", "steps", "--effort", 0.00001, "--budgets", 0.8, 0.5, "--ours", ours)
    few = ("--fewer", 2, "--noises", 2, "--batch", 1, "--timed-batch", 1, "--rounds", 1)
    small = ("--model", model_folder, *search, *few, "--results", results)
    found = rows(bench("caches", *small))
    all_ways, beside = [row for row in found if len(row) == 7], [row for row in found if len(row) == 5]
    assert {"dense", "2 steps", "diff-es, macs=0.8", "diff-es, macs=0.5"} < {row[0] for row in all_ways}
    assert len(all_ways) == 4 + len(beside) == 4 + 3 * 6
    faster = [float(row[1].split(" ")[0]) for row in all_ways]
    assert faster == sorted(faster, reverse=True)
    closeness = {row[0]: row[3:6] for row in all_ways}
    for name, _, *pairs in beside:
        assert [pair.split(", ")[0] for pair in pairs] == closeness[name]
    assert closeness["dense"][0] == "120.00"
    before = results.read_bytes()
    assert rows(bench("caches", *small)) == found
    assert results.read_bytes() == before, "what is there is not run again"


def test_compact(bench: Bench) -> None:
    options = ("--steps", 10, "--calibration-samples", 2, "--noises", 1, "--tolerances", 0.5)
    found = rows(bench("compact", *options))
    assert [len({row[0] for row in found}), len({row[1] for row in found}), len(found)] == [2, 3, 6]
    resident, streamed = ([row[i].split(" ")[0] for row in found] for i in (2, 3))
    assert resident == streamed  # where weights wait changes nothing of what comes out


def test_effort(bench: Bench, tmp_path: Path) -> None:
    results = tmp_path / "effort.jsonl"
    small = ("--levers", "prune", "--seeds", 0, "--steps", 2, "--noises", 1, "--efforts", 0.00001)
    options = (*small, "--results", results)
    found = rows(bench("effort", *options, "--budgets", 0.5))
    searches = ("measured", "ours", "paper", "random")
    assert [row[2:5] for row in found] == [["0.5", "1e-05", search] for search in searches]
    assert bench("effort", *options, "--budgets", 0.9), "a run that is known is passed over"
    assert len(results.read_text().splitlines()) == len(searches)


def test_calibration(bench: Bench) -> None:
    options = ("--steps", 2, "--noises", 1, "--effort", 0.00001, "--budgets", 0.75, "--samples", 2, 4)
    few, more = rows(bench("calibration", *options))
    assert [few[1:3], more[1:3]] == [["2", "1.0"], ["4", "2.0"]]
    assert few[3] != more[3]


def test_hours(bench: Bench) -> None:
    ((model, units, *_, images, hours),) = rows(
        bench("hours", "--models", "PixArt-Sigma", "--effort", 0.00001, "--stages", 1, model=False)
    )
    assert (model, units) == ("PixArt-Sigma", "28")
    assert 0 < float(hours) < float(images.replace(",", ""))


def test_cluster(bench: Bench) -> None:
    small = ("--models", "PixArt-Sigma", "--effort", 0.00001, "--stages", 1, "--workers", 1, 3)
    one, three = rows(bench("cluster", *small, "--population", 4, model=False))
    assert [one[:3], three[:3]] == [["PixArt-Sigma", "4", "1"], ["PixArt-Sigma", "4", "3"]]
    assert one[3] == three[3], "any number of workers has the same pieces"
    assert float(three[4]) < float(one[4])
    for found in (one, three):
        assert sum(float(cell.removesuffix("%")) for cell in found[6:]) == pytest.approx(100, abs=3)


def test_pieces_on_an_imagined_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    from cluster import ASKED, Clocked, makespan

    assert [makespan([2.0] * 20, workers) for workers in (1, 8, 20, 64)] == [40.0, 6.0, 2.0, 2.0]  # whole rounds
    assert makespan([2.0] * 3, 4, each=0.5) == 3.5  # the last is given out after two others were
    draw = Random(0)
    for workers in (1, 2, 5):
        seconds = [draw.uniform(1, 3) for _ in range(17)]  # none so long that two do it
        free = [0.0] * workers
        for one in seconds:  # the next to whoever is free first
            free[free.index(min(free))] += one
        assert makespan(seconds, workers) == pytest.approx(max(free))

    def slow(_: object, piece: float) -> tuple[None, float]:
        return None, 20 * piece

    def fast(_: object, piece: float) -> tuple[None, float]:
        return None, piece

    crew = Clocked([fast, slow])  # the last is asked first
    assert sorted(piece for piece, _ in crew.answers(ASKED, [2.0, 2.0, 2.0])) == [2.0] * 3
    assert (crew.now, crew.repeated) == (9.0, 0)  # late after three times as long as most: looked for at 4, 5, 6, 7
    list(crew.answers(ASKED, [2.0]))
    assert crew.now == 11.0, "who is still at the other copy is asked nothing"


def test_population(bench: Bench, tmp_path: Path, model_folder: Path) -> None:
    results = tmp_path / "population.jsonl"
    small = ("--steps", 4, "--stages", 2, "--seeds", 0, "--noises", 1, "--search-noises", 2, "--results", results)
    options = ("--model", model_folder, *small, "--populations", 2, 4, "--workers", 2, "--units", 4)
    start, few, many = rows(bench("population", *options))
    assert [one[2:5] for one in (start, few, many)] == [["the start alone", "0", "1"], ["2", "2", "4"], ["4", "2", "8"]]
    before = results.read_bytes()
    assert rows(bench("population", *options)) == [start, few, many]
    assert results.read_bytes() == before, "what is there is not run again"


def test_scaling(bench: Bench, tmp_path: Path, model_folder: Path) -> None:
    results = tmp_path / "scaling.jsonl"
    model, few = ("--model", model_folder, "--shared", model_folder), ("--workers", 1, "--pieces", 2, "--rounds", 1)
    small = (*model, *few, "--steps", 4, "--noises", 2)
    options = (*small, "--parts", "throughput", "levels", "bytes", "--results", results)
    output = bench("scaling", *options)  # the other parts start Ray again
    one, solved, sizes = rows(output)
    assert all(float(cell.removesuffix(" s")) > 0 for cell in solved[:2])
    assert [one[0], *one[3:5]] == ["1", "1.00 (1.00 to 1.00)", "1.00"]
    origin, in_memory = (float(cell.removesuffix(" MB")) for cell in sizes[1:3])
    assert origin < in_memory, "a pipeline that is opened by its origin does not travel"
    assert bench("scaling", *options) == output, "what is there is not measured again"


def test_corrections(bench: Bench) -> None:
    options = ("--steps", 4, "--guidances", 2, 3, "--directions", 2, "--search-noises", 2, 3, "--noises", 1)
    found = {row[0]: row[1:] for row in rows(bench("corrections", *options))}
    carried, fitted = "half, corrected as for guidance 2", "half, 6 directions, 2 noises"
    assert set(found) == {"all 4 steps", "half of them", carried, "half, 2 directions, 3 noises", fitted}
    assert all(len(values) == 2 for values in found.values())


def test_inspect_sdxl(bench: Bench) -> None:
    output = bench("inspect_sdxl", "--channels", 64, 64, 64, "--blocks", 1, 1, 1, model=False)
    counted = re.search(r"MACs of a call ([0-9,]+), of the units and the rest ([0-9,]+)", output)
    assert counted
    assert counted[1] == counted[2]


def test_few_steps(bench: Bench, tmp_path: Path) -> None:
    results = tmp_path / "results.jsonl"
    small = ("--steps", 3, "--effort", 0.00001, "--budgets", 0.6, "--seeds", 0, "--noises", 2, "--results", results)
    *found, nearer = rows(bench("few_steps", *small, "--scheduler", "LCMScheduler", "--random"))
    rivals = ["fewer-steps", "uniform", "mosaicdiff", "random", "diff-es"]
    assert [(cells[2], cells[3]) for cells in found] == [("1", "dense"), *(("0.6", name) for name in rivals)]
    before = results.read_bytes()
    distances = {cells[3]: float(cells[6].split(" ")[0]) for cells in found}
    short = dict(zip(("diff-es", "uniform", "mosaicdiff", "fewer-steps", "dense"), nearer[4:9], strict=True))
    assert all(abs(distances[name] - float(cell.split(", ")[-1])) < 0.02 for name, cell in short.items())
    for name, cell in zip(("uniform", "mosaicdiff"), nearer[9:], strict=True):
        assert abs(distances["diff-es"] - distances[name] - float(cell.split(" ")[0])) < 0.02
    assert rows(bench("few_steps", *small, "--scheduler", "LCMScheduler")) == [*found, nearer]
    assert results.read_bytes() == before, "a seed that is there is passed over"


def test_solvers(bench: Bench, tmp_path: Path) -> None:
    results = tmp_path / "results.jsonl"
    small = ("--guidances", 2, "--calls", 2, 3, "--seeds", 0, "--noises", 2, "--trial-noises", 1, "--effort", 0.00001)
    few = ("--fitted-noises", 1, "--iterations", 1, "--sensitivity-noises", 1, "--bases", "DPM-Solver++ 2M")
    options = (*small, *few, "--results", results)
    found = rows(bench("solvers", *options))
    rivals = ["DDIM", "DPM-Solver++ 2M", "DPM-Solver++ 3M", "UniPC 2", "UniPC 3", "DEIS 3", "iPNDM 4"]
    fitted = ["Adams-Bashforth 3", "GITS", "PAS", "fitted by gradient"]
    ours = ["ours, then by gradient", "ours, DPM-Solver++ 2M"]
    ahead_of = [f"{name}: better than the best rival by" for name in ours]
    judged = [*rivals, *fitted, *ours, *ahead_of]
    assert [cells[0] for cells in found] == [*judged * 2, *rivals, *fitted, ours[0]]
    assert {spacing for cells in found[30:37] for spacing in cells[1:3]} <= set(Spacing)
    for part, sign in ((found[:15], 1), (found[15:30], -1)):
        for column in (1, 2):
            *others, _, own = (float(cells[column].split(" ")[0]) for cells in part[:13])
            ahead, best = part[14][column].split(" ", 1)
            assert abs(sign * own - max(sign * other for other in others) - float(ahead)) < 0.02
            assert best.strip("()") in (*rivals, *fitted)
    before = results.read_bytes()
    assert {one["calls"] for one in map(json.loads, before.splitlines())} == {2, 3, 250}
    assert rows(bench("solvers", *options)) == found
    assert results.read_bytes() == before, "what is there is passed over"


def test_ingredients(bench: Bench, tmp_path: Path) -> None:
    tiny(layers=4, head_size=8).save_pretrained(tmp_path)
    options = ("--model", tmp_path, "--steps", 2, "--calibration-samples", 2, "--noises", 1, "--levels", 2)
    found = rows(bench("ingredients", *options, model=False))
    assert {cells[1] for cells in found} == {
        "effect",
        "received",
        "last",
        "run",
        "recalled",
        "modulation",
        "narrow",
    }
    assert all(without != changed for *_, without, changed in found)


@pytest.mark.slow
def test_digits(bench: Bench, tmp_path: Path) -> None:
    work, results = ("--work", tmp_path / "digits"), tmp_path / "results.jsonl"
    bench("digits", *work, "--minutes", 0.004, model=False)
    small = ("--steps", 2, "--effort", 0.00001, "--budgets", 0.7, "--seeds", 0, "--noises", 2, "--results", results)
    *found, _ = rows(bench("digits", *work, *small, "--measures", "blend", model=False))
    rivals = [("1", "dense"), *(("0.7", name) for name in ("fewer-steps", "uniform", "mosaicdiff", "diff-es"))]
    searched = "levers prune, measure blend"
    assert [tuple(cells[1:4]) for cells in found] == [(searched, *one) for one in rivals]


@pytest.mark.slow
def test_joint(bench: Bench, tmp_path: Path) -> None:
    results = tmp_path / "joint.jsonl"
    options = (*SAMPLED, *SEARCHED, "--search-noises", 3, "--budgets", 0.7, "--results", results)
    first = bench("joint", *options)
    hand = [f"by hand, {rule}" for rule in ("trailing", "trailing, corrected", "karras", "exponential", "quadratic")]
    ours = ["steps and pruning", "steps alone", "pruning alone"]
    assert sorted(names(first, 1)) == sorted(
        ["user's own setting", *ours, *hand, "evenly fewer steps", "uniform pruning"]
    )
    written = results.read_bytes()
    assert bench("joint", *options) == first  # a seed that is held is passed over
    assert results.read_bytes() == written


def test_levels(bench: Bench) -> None:
    output = bench("levels", "--batch", 1, 2, "--rounds", 1)
    assert names("\n".join(output.splitlines()[:4])) == ["1", "2"]
    assert [line for line in output.splitlines() if line.startswith("level ")] == [
        f"level {level}, batch 2" for level in (0, 4, 7)
    ]


@pytest.mark.parametrize("part", [("--candidates", 3), ("--levers", "steps", "--generations", 1)])
def test_overhead(bench: Bench, part: tuple[object, ...]) -> None:
    lines = bench("overhead", *SAMPLED, "--search-noises", 4, *part).splitlines()
    expected = ["3 candidates"] if part[0] == "--candidates" else ["table of sensitivities", "search", "both"]
    assert [line.split(", ")[0] for line in lines] == expected
    for line in lines:
        assert sum(map(float, re.findall(r"([-0-9.]+)%", line))) == pytest.approx(100, abs=0.2)


@pytest.mark.slow
def test_promise(bench: Bench, tmp_path: Path) -> None:
    results = tmp_path / "promise.jsonl"
    small = ("--budgets", 0.7, "--noises", 1, "--population", 2, "--generations", 1, "--results", results)
    first = bench("promise", "--seeds", 1, *small)
    assert names(first, 3) == ["1"]
    assert bench("promise", "--seeds", 1, *small) == first  # a seed that is held is passed over
    both = rows(bench("promise", "--seeds", 2, *small))
    assert [row[3] for row in both] == ["2"]
    assert "nan" not in both[0][6]


def test_foretold(bench: Bench) -> None:
    small = ("--steps", 4, "--stages", 2, "--calibration-samples", 2, "--search-noises", 2, "--generations", 1)
    (found,) = rows(bench("foretold", *small, "--settings", "pruning whole, Wanda alone"))
    assert found[0].endswith(", pruning whole, Wanda alone")
    assert float(found[5].removesuffix(" GB")) > 0.2


@pytest.mark.parametrize(("model", "ranking"), [("dit", "obs"), ("sdxl", "wanda"), ("flux", "wanda")])
def test_real_size(bench: Bench, tmp_path: Path, model: str, ranking: str) -> None:
    which, results = ("--model", model, "--ranking", ranking), tmp_path / "rows.jsonl"
    small = ("--shrink", 8, "--stages", 1, "--steps", 1, "--latents", 8, "--levels", 2, "--memory", 0.1)
    found = rows(bench("real_size", *which, *small, "--macs", 0.8, "--results", results, model=False))
    assert [[len(row) for row in found], [row[0] for row in found]] == [[6] * 3, ["measured", "foretold", "dense"]]
    (kept,) = [json.loads(line) for line in results.read_text().splitlines()]
    assert kept["dense"] < kept["peak"]
    assert kept["memory"] == 0.1


def test_readme(bench: Bench, tmp_path: Path) -> None:
    demo, into = tmp_path / "demo", tmp_path / "repository"
    fewer = Row("fewer-steps", 0.5, 10, 0.5, 4.0, 0.1, 1.96, 1.9, 14.06, 18.9, 28.7, None, 8)
    dense = Row("dense", 1.0, 20, 1.0, 9.0, 0.1, 1.0, 1.0, 20.44, None, 35.0, 2.3, 8)
    measured = [dense, fewer, replace(fewer, contender="random", tried=32), replace(fewer, contender="diff-es")]
    facts = {"Reference": "the dense model at 80 steps", "Seed": "0", "Device": "a processor"}
    write_text(demo / "result.json", json.dumps({"facts": facts, "rows": [row.to_json() for row in measured]}))
    contact_sheet([torch.zeros(3, 2, 2)]).save(demo / "side-by-side.png")
    write_text(into / "README.md", "Before.\n<!-- demo -->\nof old\n<!-- /demo -->\nAfter.\n")
    (into / "docs/tables").mkdir(parents=True)
    bench("readme", "--demo", demo, "--into", into, model=False)
    readme, table = (into / "README.md").read_text(), (into / "docs/tables/demo.md").read_text()
    assert readme.startswith("Before.\n<!-- demo -->\nMean SNR")
    assert readme.endswith("<!-- /demo -->\nAfter.\n")
    assert "20.4 dB (`make demo` at commit" in readme
    assert [row[1] for row in rows(readme)] == ["**14.1 dB, 1.96x**", "14.1 dB, 1.96x", "14.1 dB, 1.96x"]
    assert names(readme)[-1] == "random search of steps and levels, best of 32"
    assert names(table)[:4] == ["Dense", "Fewer steps", "Random, best of 32", "Diff-ES"]
    assert (into / "docs/side-by-side.png").read_bytes() == (demo / "side-by-side.png").read_bytes()
    (into / "README.md").write_text("No place for it.")
    with pytest.raises(ValueError, match="expected one <!-- demo -->"):
        bench("readme", "--demo", demo, "--into", into, model=False)


def test_the_readme_is_made_of_a_demo_that_begins_from_nothing() -> None:
    asked = ["make", "--dry-run", "--no-print-directory", "readme"]
    told = subprocess.check_output(asked, cwd=BENCHMARKS.parent, env={**os.environ, "MAKEFLAGS": ""}, text=True)
    run = [".venv/bin/diff-es demo --out demo", ".venv/bin/python benchmarks/readme.py --demo demo"]
    assert told.splitlines()[-3:] == ["rm -rf demo", *run], told


def test_routing(bench: Bench) -> None:
    output = bench("routing", "--batch", 1, "--stages", 2, "--calls", 2, "--rounds", 1, "--without", "stitched")
    assert names(output, 1) == ["dense", "resident", "streamed", "compact", "stitched, counted"]


@pytest.mark.slow
def test_search(bench: Bench) -> None:
    rivals = ("the paper's", "default", "random", "EvoPress'")
    small = ("--seeds", 0, "--noises", 1, "--search-noises", 1, "--racing", 2, "--evaluations", 2)
    found = names(bench("search", *SAMPLED, *small, "--rivals", *rivals))
    assert sorted(found) == sorted([*rivals, "knapsack alone"])


def test_a_search_without_a_measure_of_work_is_refused(bench: Bench) -> None:
    with pytest.raises(SystemExit, match='expected "the paper\'s" among --rivals'):
        bench("search", "--rivals", "random")


@pytest.mark.parametrize("wrong", [("--rivals", "nobody"), ("--seeds", "first"), ("--seeds",), ("--steps", 2.5)])
def test_an_option_of_another_type_or_choice_is_refused(bench: Bench, wrong: tuple[object, ...]) -> None:
    with pytest.raises(SystemExit) as refused:
        bench("search", *wrong)
    assert refused.value.code == 2


@pytest.mark.slow
def test_seeds(bench: Bench) -> None:
    found = names(bench("seeds", *SAMPLED, *SEARCHED, "--search-noises", 2))
    assert found == ["fewer-steps", "uniform", "mosaicdiff", "random", "diff-es"] * 2


@pytest.mark.slow
def test_unet(bench: Bench) -> None:
    found = names(bench("unet", *SAMPLED, *SEARCHED))
    pruned = ["uniform pruning", "MosaicDiff-like schedule", "evolved schedule"]
    plain = [f"{name}, no compensation" for name in pruned]
    assert found == ["dense model", "evenly fewer steps of the dense model", *pruned, *plain]


def test_every_benchmark_has_a_test() -> None:
    scripts = {path.stem for path in BENCHMARKS.glob("*.py") if 'if __name__ == "__main__"' in path.read_text("utf-8")}
    assert scripts <= {name.removeprefix("test_") for name in globals()}
