"""Laws of the whole method: within its budget, repeatable, resumable at any moment, and whole again from disk."""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DiTPipeline, DPMSolverMultistepScheduler
from tests.helpers.tiny import LITTLE, assert_same, assert_same_plans, images, settings, snapshot, tiny
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from diff_es import (
    Activation,
    BudgetOutOfReach,
    Compressed,
    Depth,
    DiffESError,
    Magnitude,
    Method,
    Obs,
    Ridge,
    Run,
    Sampling,
    Settings,
    UnsupportedModel,
    Wanda,
    Width,
    compress,
)
from diff_es.compression.evaluator import Evaluator
from diff_es.compression.evolve import evolve
from diff_es.compression.reopening import found_again
from diff_es.compression.sensitivity import sensitivity
from diff_es.compression.settings import Levers, describe, restore
from diff_es.compression.study import Study
from diff_es.pruning.granularity import Granularity
from diff_es.scoring.fidelity import ImagePSNR, ImageSSIM
from diff_es.scoring.fitness import Fitness
from diff_es.scoring.journal import Journal
from diff_es.search import Candidate
from diff_es.utils.progress import Reporter

METHODS = {
    "obs": Method(Width(4, dense=())),
    "obs of two rounds": Method(Width(3, dense=()), Obs(damping=0.1, rounds=2), Ridge(damping=0.1, intercept=False)),
    "wanda": Method(Width(4, dense=()), Wanda()),
    "magnitude": Method(Width(4, dense=()), Magnitude()),
    "activation": Method(Width(4, dense=()), Activation()),
    "no compensation": Method(Width(4, dense=()), compensation=None),
    "shared statistics": Method(Width(4, dense=()), stagewise=False),
    "depth": Method(Depth()),
    "depth without a bypass": Method(Depth(bypass=False)),
    "shared depth": Method(Depth(), stagewise=False),
}
METHODS = {  # one unit, as in the paper
    name: replace(method, granularity=Granularity.WHOLE) for name, method in METHODS.items()
}
MACS = 0.6


def assert_same_result(one: Compressed, other: Compressed) -> None:
    """Schedule, plans to the bit, scores, finalists and history."""
    assert one.schedule == other.schedule
    assert (one.base, one.sampling) == (other.base, other.sampling)
    assert one.report == other.report
    assert_same_plans(one.plans, other.plans)


def counted_macs(pipe: DiTPipeline) -> int:
    """Of the denoiser in one trajectory as it really runs."""
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        images(pipe)
    return int(sum(counter.get_flop_counts()["DiTTransformer2DModel"].values())) // 2


@pytest.mark.parametrize("name", METHODS)
def test_every_method_keeps_the_budget_and_spends_it(name: str) -> None:
    pipe, chosen = tiny(), settings(method=METHODS[name], **LITTLE)
    before, dense, dense_macs = snapshot(pipe.transformer), images(pipe), counted_macs(pipe)
    fast = compress(pipe, 0.7, chosen)
    assert_same(before, snapshot(pipe.transformer))
    with fast.routed(pipe):
        realised, pruned = counted_macs(pipe), images(pipe)
    report, levels = fast.report, [row[0] for row in fast.schedule.levels]
    assert realised / dense_macs == pytest.approx(report.macs_ratio, rel=1e-12)
    assert realised <= 0.7 * dense_macs
    (table,), steps = report.macs_by_level, report.steps
    shares = [macs / table[0] / 6 for macs in table]
    for stage, level in enumerate(levels):  # what is left of the budget buys no stage a lower level
        rises = [steps[stage] * (dearer - shares[level]) for dearer in shares if dearer > shares[level]]
        assert not rises or realised / dense_macs + min(rises) > 0.7
    assert not torch.equal(pruned, dense)
    assert torch.equal(images(pipe), dense)


def test_the_same_seed_gives_the_same_result_and_another_seed_other_probes(fast: Compressed) -> None:
    assert_same_result(compress(tiny(), MACS, settings()), fast)
    other = compress(tiny(), MACS, settings(seed=1))
    assert other.report.score != fast.report.score
    assert other.report.held_out_score != fast.report.held_out_score


def test_what_is_found_is_the_best_of_what_was_judged(fast: Compressed) -> None:
    winner, *others = finalists = found_again(fast.report).finalists
    assert (winner.candidate, winner.score) == (Candidate.of(fast.schedule.levels), fast.report.score)
    assert winner.corrected
    assert all(other.noises < winner.noises or other.held_out <= winner.held_out for other in others)
    best = max(one.score for one in finalists)
    assert best >= fast.report.history[-1].best


def test_the_measure_of_the_search_is_a_choice(study: Study) -> None:
    scores = []
    for measure in (ImagePSNR(), ImageSSIM()):
        other = replace(study, settings=settings(measure=measure, **LITTLE))
        judge, quiet = Evaluator(other, Journal(None, {}, resume=False)), Reporter(quiet=True)
        table = sensitivity(other, judge, quiet)
        scores.append(evolve(other, (0.7,), judge, table, quiet)[0].score)
    assert scores[0] > 1 > scores[1] > 0


# ------------------------------------------------------------------------------------------------------- stopping


@pytest.mark.parametrize("evaluations", [0, 7, 12, "all and one finalist"])
def test_resumed_equals_uninterrupted(
    evaluations: int | str, fast: Compressed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    total = fast.report.evaluations
    most = evaluations if isinstance(evaluations, int) else total + 1
    judge, final, calls, journal = Fitness.__call__, Fitness.each, [0], tmp_path / "run" / "journal.jsonl"

    def count() -> None:
        calls[0] += 1
        if calls[0] > most:
            raise KeyboardInterrupt

    def limited(self: Fitness, candidate: Candidate) -> float:
        count()
        return judge(self, candidate)

    def finals(self: Fitness, candidate: Candidate, **others: bool) -> list[float]:
        count()
        return final(self, candidate, **others)

    pipe = tiny()
    before = snapshot(pipe.transformer)
    with monkeypatch.context() as patch:
        patch.setattr(Fitness, "__call__", limited)
        patch.setattr(Fitness, "each", finals)
        with pytest.raises(KeyboardInterrupt):
            compress(pipe, MACS, settings(), run=Run(journal=journal))
        assert_same(before, snapshot(pipe.transformer))
    assert len(journal.read_text().splitlines()) == 1 + min(most, total)
    assert_same_result(compress(pipe, MACS, settings(), run=Run(journal=journal, resume=True)), fast)
    assert len(journal.read_text().splitlines()) == 1 + total


def test_a_finished_journal_answers_everything(
    fast: Compressed, finished_journal: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal = Path(shutil.copy(finished_journal, tmp_path))
    judge, asked = Fitness.__call__, list[Any]()

    def noted(self: Fitness, candidate: Candidate) -> float:
        asked.append(candidate)
        return judge(self, candidate)

    monkeypatch.setattr(Fitness, "__call__", noted)
    assert_same_result(compress(tiny(), MACS, settings(), run=Run(journal=journal, resume=True)), fast)
    assert asked == []
    assert journal.read_bytes() == finished_journal.read_bytes()


@pytest.mark.parametrize(("kept", "piece"), [(0, 30), (1, 1), (9, -1)])
def test_a_line_cut_short_is_evaluated_again(
    kept: int, piece: int, fast: Compressed, finished_journal: Path, tmp_path: Path
) -> None:
    lines = finished_journal.read_bytes().splitlines(keepends=True)
    journal = tmp_path / "journal.jsonl"
    journal.write_bytes(b"".join(lines[:kept]) + lines[kept][:piece])
    assert_same_result(compress(tiny(), MACS, settings(), run=Run(journal=journal, resume=True)), fast)
    assert journal.read_bytes() == finished_journal.read_bytes()


@pytest.mark.slow
def test_killed_twice_and_resumed_equals_uninterrupted(fast: Compressed, tmp_path: Path) -> None:
    journal = tmp_path / "journal.jsonl"
    for least in (2, 5):
        child = os.fork()
        if child == 0:
            try:
                compress(tiny(), MACS, settings(), run=Run(journal=journal, resume=True))
            finally:
                os._exit(0)
        while not (journal.exists() and len(journal.read_bytes().splitlines()) > least):
            assert os.waitpid(child, os.WNOHANG) == (0, 0), "it ended before it could be killed"
            time.sleep(0.001)
        os.kill(child, signal.SIGKILL)
        assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL
    assert least < len(journal.read_bytes().splitlines()) <= fast.report.history[-1].evaluations
    assert_same_result(compress(tiny(), MACS, settings(), run=Run(journal=journal, resume=True)), fast)


@pytest.mark.parametrize(
    ("macs", "changes", "model", "named"),
    [
        (0.61, {}, {}, "budget .*'macs': 0.6,.* then and .*'macs': 0.61,.* now"),
        (MACS, {"seed": 1}, {}, "seed 0 then and 1 now"),
        (
            MACS,
            {"search_noises": 3, "population": 7},
            {},
            "population 4 .* and 7 now, search_noises 2 then and 3",
        ),
        (
            MACS,
            {"sampling": Sampling(7, 2.0, 2)},
            {},
            "sampling .*'num_inference_steps': 6.* then .*_steps': 7",
        ),
        (MACS, {"method": METHODS["wanda"]}, {}, "method .*'Obs'.* then and .*'Wanda'"),
        (MACS, {"measure": ImageSSIM()}, {}, "measure .*'LatentSNR'.* then and .*'ImageSSIM'"),
        (MACS, {}, {"seed": 1}, "model '[0-9a-f]{64}' then and '[0-9a-f]{64}' now"),
        (MACS, {}, {"scheduler": DPMSolverMultistepScheduler}, "scheduler .*'DDIM.* then and .*'DPMSolver"),
        (MACS, {}, {"dtype": torch.bfloat16}, "dtype 'float32' then and 'bfloat16' now"),
    ],
)
def test_a_journal_of_other_settings_is_refused_and_kept(
    macs: float, changes: Any, model: Any, named: str, fast: Compressed, finished_journal: Path, tmp_path: Path
) -> None:
    journal = Path(shutil.copy(finished_journal, tmp_path))
    with pytest.raises(DiffESError, match=f"journal.jsonl: expected the settings .*{named}.* Resume with"):
        compress(tiny(**model), macs, settings(**changes), run=Run(journal=journal, resume=True))
    assert journal.read_bytes() == finished_journal.read_bytes()


def test_a_journal_is_not_overwritten_unasked(fast: Compressed, finished_journal: Path, tmp_path: Path) -> None:
    journal = Path(shutil.copy(finished_journal, tmp_path))
    with pytest.raises(DiffESError, match=r"expected no earlier search, found a journal of \d+ evaluations. Add"):
        compress(tiny(), MACS, settings(), run=Run(journal=journal))
    assert journal.read_bytes() == finished_journal.read_bytes()


# ------------------------------------------------------------------------------------------------------ bad input


def test_a_budget_out_of_reach_is_refused_before_any_search(study: Study, tmp_path: Path) -> None:
    with pytest.raises(
        BudgetOutOfReach, match=r"macs: expected at least 0\.3835, .* found 0.1. Ask for 0\.3835 or more"
    ):
        compress(tiny(), 0.1, settings(), run=Run(journal=tmp_path / "journal.jsonl"))
    assert 0.383 < study.costs.options[0][-1] / study.costs.options[0][0] <= 0.3835
    for macs in (0.0, -1.0, 1.01, float("nan")):
        with pytest.raises(BudgetOutOfReach, match="macs: expected a fraction above 0, at most 1"):
            study.costs.space(macs)
    assert list(tmp_path.iterdir()) == []


def test_the_whole_budget_is_the_dense_model() -> None:
    pipe = tiny()
    dense, fast = images(pipe), compress(pipe, 1.0, settings())
    assert fast.schedule.levels == ((0,), (0,), (0,))
    with fast.routed(pipe):
        assert torch.equal(images(pipe), dense)


def test_more_stages_than_steps_are_refused() -> None:
    with pytest.raises(DiffESError, match=r"stages: expected a number from 1 to the 6 timesteps .*found 7"):
        compress(tiny(), MACS, settings(stages=7))


def test_a_pipeline_in_training_mode_or_of_another_class_is_refused() -> None:
    pipe = tiny()
    pipe.transformer.train()
    with pytest.raises(UnsupportedModel, match=r"pipe.transformer: expected evaluation mode, .*Call .*eval\(\) first"):
        compress(pipe, MACS, settings())
    with pytest.raises(UnsupportedModel, match=r"pipe: expected one of DiTPipeline, .*, found NoneType"):
        compress(None, MACS, settings())  # type: ignore[arg-type]


def test_autocast_around_a_search_is_refused_before_anything_runs() -> None:
    pipe = tiny()
    runs = pipe.transformer.register_forward_hook(lambda *_: pytest.fail("it ran"))
    with torch.autocast("cpu"), pytest.raises(DiffESError, match=r"expected no autocast around it.*load the pipeline"):
        compress(pipe, MACS, settings())
    runs.remove()


def test_a_routed_pipeline_is_not_compressed_again(fast: Compressed) -> None:
    pipe = tiny()
    with fast.routed(pipe), pytest.raises(DiffESError, match="routed already"):
        compress(pipe, MACS, settings())


# ------------------------------------------------------------------------------------------------------- settings


@pytest.mark.parametrize("name", sorted(METHODS))
@pytest.mark.parametrize("measure", [None, ImagePSNR(), ImageSSIM()])
def test_settings_come_back_from_json(name: str, measure: Any) -> None:
    chosen = settings(method=METHODS[name], seed=7)
    chosen = chosen if measure is None else replace(chosen, measure=measure)
    assert restore(json.loads(json.dumps(describe(chosen)))) == chosen


@pytest.mark.parametrize("grain", Granularity)
@pytest.mark.parametrize("levers", Levers)
def test_levers_units_and_fronts_come_back_from_json(levers: Levers, grain: Granularity) -> None:
    method = Method(Width(4, 16, (("ff", 3),), depth=Depth(bypass=False)), granularity=grain)
    chosen = settings(levers=levers, method=method, first_rung=1, reference_multiple=3, front=(0.4, 0.6))
    assert restore(json.loads(json.dumps(describe(chosen)))) == chosen


def test_default_settings_come_back_and_senseless_ones_are_refused() -> None:
    assert restore(describe(Settings())) == Settings()
    with pytest.raises(DiffESError, match="first_rung: expected a number from 0, below the 16 search noises, found 16"):
        Settings(search_noises=16, first_rung=16)
    with pytest.raises(DiffESError, match=r"first_rung: expected a whole number from 0 to .*, found -1"):
        Settings(search_noises=16, first_rung=-1)
    assert [Settings(search_noises=n).rung_noises for n in (1, 2, 9, 32)] == [0, 1, 4, 16]
    assert Settings(first_rung=0).rung_noises == 0
    counts = ("stages", "calibration_samples", "reference_multiple", "search_noises", "finalists", "population")
    for field in (*counts, "sensitivity_noises", "held_out_noises", "generations"):
        with pytest.raises(DiffESError, match=f"{field}: expected a whole number from 1 to .*, found 0"):
            Settings(**{field: 0})  # type: ignore[arg-type]
    for call in (
        {"num_inference_steps": 0},
        {"batch": 0},
        {"guidance_scale": -1.0},
        {"guidance_scale": float("nan")},
    ):
        with pytest.raises(DiffESError, match=f"{next(iter(call))}: expected a (whole )?number from"):
            Sampling(**call)
