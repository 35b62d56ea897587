"""Rivals keep the budget of the result that they are compared with, in its own unit."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from diffusers import DiTPipeline
from tests.helpers.tiny import CALL, EIGHT, LITTLE, settings, tiny

from diff_es import Compressed, DiffESError, Run, Streamed, compress, load
from diff_es.cli.app import main
from diff_es.compression.reopening import asked_again
from diff_es.evaluation.rivals import Contender, contenders
from diff_es.pruning.budget import Budget, MacsRatio, Prices, Speedup, WeightMemory
from diff_es.pruning.costs import Costs
from diff_es.routing.placements import parameter_bytes
from diff_es.scoring.timing import Runner

SPEEDUP, LIMIT = 1.2, 0.75
SAVED = 0.06  # the share of a step's time that each of eight levels saves, far less than of its MACs
PADDING = 6 * 8 * 64  # bytes, of the parts that are copied to the device: tensors of six layers


def slow_to_shrink(pipe: Any, counter: Any, units: Any, counted: Costs, *_: Any) -> Prices:
    """What a device would measure whose time hardly falls with the level."""
    price = tuple(round(1e6 * (1 - SAVED * level)) for level in range(len(units[0].options)))
    return Prices(Costs.tabled([price], counted.steps, counted.choices), 0.0)


class Made(NamedTuple):
    model: Path
    results: Mapping[str, Path]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """A model, and results for a budget of time and for one of weights, with their journals."""
    folder = tmp_path_factory.mktemp("rivals")
    pipe = tiny(head_size=16, heads=8)
    pipe.save_pretrained(folder / "model")
    limit = LIMIT * parameter_bytes(pipe.transformer) / 1e9
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("diff_es.compression.survey.measured_prices", slow_to_shrink)
        for name, budget in (("time", {"speedup": SPEEDUP}), ("weights", {"macs": 0.8, "weights_gb": limit})):
            journal = folder / name / "journal.jsonl"
            little = settings(**LITTLE, method=EIGHT)
            compress(pipe, settings=little, run=Run(journal=journal), **budget).save(folder / name)
    return Made(folder / "model", {name: folder / name for name in ("time", "weights")})


@pytest.fixture
def rivals(monkeypatch: pytest.MonkeyPatch) -> list[Contender]:
    """Whom ``evaluate`` compares a result with, itself included."""
    found = list[Contender]()

    def noted(*arguments: Any) -> tuple[Contender, ...]:
        found.extend(contenders(*arguments))
        return tuple(found)

    monkeypatch.setattr("diff_es.evaluation.evaluate.contenders", noted)
    return found


def evaluated(made: Made, folder: Path, target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = ["--noises", "2", "--rounds", "1", "--random", "2", "--batch", "2", "--out", str(target)]
    monkeypatch.setattr(sys, "argv", ["diff-es", "evaluate", str(folder), "--model", str(made.model), *options])
    with pytest.raises(SystemExit) as ended:
        main()
    assert not ended.value.code


def earlier(fast: Compressed) -> Compressed:
    """As it was saved before results said what was asked for."""
    report = replace(fast.report, budget=Budget(MacsRatio(fast.report.limit)), prices=None)
    return replace(fast, searched=report)


def spent(rival: Contender) -> float:
    """The share of the dense steps' time, by what the prices were made from."""
    assert isinstance(rival.runner, Runner)
    if rival.runner.plans is None or rival.runner.stages is None:
        return rival.runner.steps / CALL.steps
    shares = list[float]()
    for plan in rival.runner.plans:  # two steps each
        cut = plan.cuts.get("transformer_blocks.0.ff")
        gone = 0.0 if cut is None else 8 * (1 - len(cut.kept) / 512)
        shares.append(1 - SAVED * gone)
    return sum(shares) / len(shares)


def test_rivals_of_a_speed_up_take_no_more_time(
    made: Made, rivals: list[Contender], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = made.results["time"]
    evaluated(made, folder, tmp_path / "out", monkeypatch)
    share = load(folder).report.limit
    assert share == pytest.approx(1 / SPEEDUP)
    assert [rival.name for rival in rivals] == ["fewer-steps", "uniform", "mosaicdiff", "random", "diff-es"]
    assert {rival.name: spent(rival) for rival in rivals if spent(rival) > share * (1 + 1e-6)} == {}
    assert [rival.cost_ratio for rival in rivals] == pytest.approx([spent(rival) for rival in rivals], rel=1e-6)
    assert min(spent(rival) for rival in rivals[1:]) > share - SAVED  # and spend it
    assert max(rival.macs_ratio for rival in rivals[1:]) < share - SAVED  # which MACs would not tell
    rows = json.loads((tmp_path / "out/result.json").read_text())["rows"]
    searched = {"random": 2, "diff-es": load(folder).report.evaluations}
    assert {row["contender"]: row["tried"] for row in rows if row["tried"] is not None} == searched


def test_an_evaluation_goes_on_with_its_own_scores_and_begins_anew_with_other_versions(
    made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, folder = tmp_path / "out", made.results["weights"]

    def journals() -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in out.glob("random-*.jsonl")}

    def time_taken() -> str:
        return str(json.loads((out / "result.json").read_text())["facts"]["Time taken"])

    evaluated(made, folder, out, monkeypatch)
    first = journals()
    assert time_taken().endswith(" minutes")
    evaluated(made, folder, out, monkeypatch)
    assert journals() == first
    assert time_taken().endswith(" minutes, without those of an earlier session")
    monkeypatch.setattr("diff_es.compression.survey.version", lambda name: f"{version(name)}+later")
    evaluated(made, folder, out, monkeypatch)
    assert len(first) == 1
    assert len(journals()) == 2
    assert first.items() < journals().items()


def test_rivals_of_a_limit_of_weights_keep_it(
    made: Made, rivals: list[Contender], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, pipe = made.results["weights"], tiny(head_size=16, heads=8)
    evaluated(made, folder, tmp_path / "out", monkeypatch)
    limit = LIMIT * parameter_bytes(pipe.transformer) + PADDING
    sizes = {rival.name: rival.runner.weight_bytes(pipe) for rival in rivals}
    assert {name: size for name, size in sizes.items() if size > limit} == {}
    assert list(sizes) == ["uniform", "mosaicdiff", "random", "diff-es"]  # no dense one
    assert all(rival.macs_ratio == rival.cost_ratio for rival in rivals)
    assert all(rival.macs_ratio <= 0.8 for rival in rivals)


def test_a_result_that_says_nothing_is_asked_for_its_budget_or_refused(made: Made) -> None:
    pipe = DiTPipeline.from_pretrained(made.model)
    time, weights = (load(folder) for folder in made.results.values())
    budget, prices = asked_again(time, pipe)
    assert budget == Budget(Speedup(SPEEDUP))
    assert prices == time.report.prices
    with pytest.raises(DiffESError, match=r"result: expected the prices .* kept by, found none.*the same --speedup"):
        asked_again(earlier(time), pipe)
    asked, none = asked_again(weights, pipe)
    assert none is None
    assert asked == Budget(MacsRatio(0.8), WeightMemory(LIMIT * parameter_bytes(pipe.transformer) / 1e9))
    derived, _ = asked_again(earlier(weights), pipe)  # from where its weights wait
    assert asked.memory is not None
    assert derived.memory is not None
    assert asked.memory.gigabytes == pytest.approx(derived.memory.gigabytes, rel=1e-12)
    loose = replace(earlier(weights), placement=Streamed())
    assert asked_again(loose, pipe) == (Budget(MacsRatio(0.8)), None)
