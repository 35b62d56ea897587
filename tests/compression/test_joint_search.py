"""Laws of searching among steps and levels: scores are those of the user's calls, however they are come by."""

from __future__ import annotations

import itertools
import json
import os
import random
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DiTPipeline, DPMSolverMultistepScheduler, UniPCMultistepScheduler
from hypothesis import given
from hypothesis import strategies as st
from tests.helpers.tiny import CALL, assert_same_plans, joint, opened, tiny
from torch import Tensor

from diff_es import Compressed, Depth, DiffESError, Method, Run, Sampling, Width, compress, load
from diff_es.compression.evaluator import Evaluator
from diff_es.compression.evolve import _pruned, evolve
from diff_es.compression.final import Found
from diff_es.compression.reopening import found_again
from diff_es.compression.search_loop import widened
from diff_es.compression.sensitivity import Sensitivity, _filled, sensitivity
from diff_es.compression.settings import Levers
from diff_es.compression.starts import with_timesteps
from diff_es.compression.study import Study, prepare
from diff_es.evaluation.rivals import contenders
from diff_es.layers import Weights
from diff_es.pipelines.probes import Probe, make_probes
from diff_es.routing.placements import Resident, parameter_bytes
from diff_es.routing.realise import realise
from diff_es.routing.routing import routed
from diff_es.scoring.fidelity import ImageSSIM, LatentSNR
from diff_es.scoring.fitness import Comparison, Fitness
from diff_es.scoring.journal import Journal, Scale
from diff_es.scoring.metrics import EXACT_DB
from diff_es.scoring.weight_cache import WeightCache
from diff_es.search import Candidate, Space, StageChoice, Steps, random_search
from diff_es.solvers.custom_timesteps import stepped
from diff_es.solvers.prefix_cache import PrefixCache
from diff_es.trajectory.corrections import fixed
from diff_es.utils.progress import Reporter
from diff_es.utils.seeds import derive_seed

KINDS: dict[str, dict[str, Any]] = {
    "DDIM": {},
    "DPM": {"scheduler": DPMSolverMultistepScheduler, "activation": "geglu"},
}
FEW: dict[str, Any] = {"finalists": 1, "survivors": 1, "generations": 1, "timestep_generations": 1}
FEW |= {"sampling": Sampling(4, CALL.guidance, CALL.batch)}
"""As few candidates as take every way through a search."""


@pytest.fixture(scope="module", params=[*KINDS, "skips"])
def study(request: pytest.FixtureRequest) -> Study:
    if request.param == "skips":
        return prepare(tiny(), joint(method=Method(Width(4, dense=(), depth=Depth()))))
    return prepare(tiny(**KINDS[request.param]), joint())


def drawn(study: Study, count: int, seed: int = 0) -> list[Candidate]:
    """Random schedules, each beside one that agrees with it at first, and one that takes its timesteps elsewhere."""
    rng, found = np.random.default_rng(seed), list[Candidate]()
    for _ in range(count):
        choices, options = study.costs.choices or (), study.costs.options
        one = Candidate(
            tuple(
                StageChoice(int(rng.choice(counts)), tuple(int(rng.integers(len(row))) for row in options))
                for counts in choices
            )
        )
        found += [one, Candidate.of(one.levels, [*one.steps[:-1], 1]), moved(study, one)]
    return found


def moved(study: Study, candidate: Candidate) -> Candidate:
    """A schedule with its timesteps, the last of them a little later."""
    there = with_timesteps(study, candidate)
    *others, last = there.timesteps
    return there.at([*others, last - 1]) if others else there


def latents_of(pipe: DiTPipeline, probes: tuple[Probe, ...]) -> Tensor:
    """What reaches the decoder where a user calls the pipeline on these probes, two at a time."""
    latents = list[Tensor]()
    handle = pipe.vae.post_quant_conv.register_forward_pre_hook(lambda module, args: latents.append(args[0]))
    for part in (probes[i : i + CALL.batch] for i in range(0, len(probes), CALL.batch)):
        generators = [torch.Generator().manual_seed(probe.seed) for probe in part]
        call: dict[str, Any] = {"guidance_scale": CALL.guidance, "num_inference_steps": CALL.steps}
        pipe([probe.condition for probe in part], generator=generators, output_type="pt", **call)
    handle.remove()
    return torch.cat(latents)


def decibels(reference: Tensor, result: Tensor) -> float:
    signal, noise = ((x.numpy().astype(np.float64) ** 2).sum((1, 2, 3)) for x in (reference, result - reference))
    return float((10 * np.log10(signal / noise)).mean())


def test_scores_are_those_of_the_users_calls_against_the_fine_list(study: Study) -> None:
    pipe, probes, fitness = study.pipe, make_probes(study.pipe, 3, 0, "search"), study.fitness("search", 3)
    assert len(study.reference or ()) == 2 * CALL.steps
    with stepped(pipe, study.reference or (), CALL.steps):
        reference = latents_of(pipe, probes)
    assert fitness.plain(study.own) == pytest.approx(decibels(reference, latents_of(pipe, probes)), rel=1e-6)
    for candidate in drawn(study, 1):
        plans = [study.library.plan(stage, levels) for stage, levels in enumerate(candidate.levels)]
        stores = opened(pipe, plans)
        steps = study.timesteps(candidate) or (), CALL.steps, fixed(fitness.corrections(candidate))
        with stepped(pipe, *steps), routed(pipe.transformer, study.stages, stores):
            found = latents_of(pipe, probes)
        assert fitness(candidate) == pytest.approx(decibels(reference, found), rel=1e-6)
        assert fitness.of_plans(plans, Resident(), candidate) == pytest.approx(fitness(candidate), rel=1e-6)
    assert fitness(study.finest) == EXACT_DB
    assert study.fresh_to_own.plain(study.own) == EXACT_DB


def fitness_of(study: Study, count: int = 3, **changes: Any) -> Fitness:
    probes, corrections = make_probes(study.pipe, count, 0, "search"), study.settings.corrections or 0
    sampling, weights = changes.pop("sampling", CALL), changes.pop("weights", None)
    terms = replace(Comparison(study.path, study.reference, corrections=corrections), **changes)
    return Fitness(study.pipe, study.library, study.stages, probes, sampling, LatentSNR(), terms, weights)


def test_a_stage_without_room_for_more_steps_takes_no_more() -> None:
    """The last of three leading steps is at timestep 0, with none between it and the end."""
    ready = prepare(tiny(), joint(sampling=Sampling(3, CALL.guidance, CALL.batch)))
    assert ready.path is not None
    assert ready.path.timesteps[-1] == 0
    assert [counts[-1] for counts in ready.costs.choices or ()] == [2] * 2 + [1]
    assert ready.base.steps == (2, 2, 1)
    evaluator, quiet = Evaluator(ready, Journal(None, {}, resume=False)), Reporter(quiet=True)
    found = evolve(ready, (0.7,), evaluator, sensitivity(ready, evaluator, quiet), quiet)[0]
    assert np.isfinite(found.held_out)


def test_held_out_probes_are_not_what_steps_are_fitted_to(study: Study) -> None:
    """But one batch of the search's own."""
    for candidate in drawn(study, 1):
        lessons = fitness_of(study, study.settings.search_noises, sampling=study.settings.sampling).corrections(
            candidate
        )
        assert any(lessons)
        assert study.corrections(candidate) == lessons
        assert study.part(0).plain(candidate) != study.part(0)(candidate)


def test_a_sampler_that_draws_noise_has_no_step_corrected() -> None:
    pipe = tiny(scheduler=DPMSolverMultistepScheduler, options={"algorithm_type": "sde-dpmsolver++"})
    ready = prepare(pipe, joint())
    assert not ready.corrected
    assert ready.corrections(ready.own) == ()
    assert ready.part(0)(ready.own) == ready.part(0).plain(ready.own)


def test_reusing_prefixes_changes_no_score(study: Study) -> None:
    plain, reusing, little = (fitness_of(study, known=PrefixCache(memory)) for memory in (0, 1 << 30, 80_000))
    new = drawn(study, 2)
    asked = [*new, *new[:3]]
    expected = {candidate: plain(candidate) for candidate in asked}
    assert {candidate: reusing(candidate) for candidate in asked} == expected
    assert {candidate: little(candidate) for candidate in reversed(asked)} == expected
    assert plain.cache.hits == 0
    assert reusing.cache.hits > little.cache.hits > 0
    assert reusing.calls < plain.calls
    assert len(set(expected.values())) > 4


@pytest.mark.parametrize("kind", [DPMSolverMultistepScheduler, UniPCMultistepScheduler])
def test_reusing_prefixes_is_exact_for_samplers_of_third_order_too(kind: type) -> None:
    """They lower their order when few steps are left: a call then depends on how many follow."""
    study = prepare(tiny(scheduler=kind, options={"solver_order": 3}), joint())
    plain, reusing = fitness_of(study, 2, known=PrefixCache(0)), fitness_of(study, 2)
    for candidate in drawn(study, 2):
        assert reusing(candidate) == plain(candidate)
    assert reusing.cache.hits > 0


def test_timesteps_written_out_change_nothing(study: Study) -> None:
    fitness = fitness_of(study)
    for candidate in drawn(study, 1)[:1]:
        written = with_timesteps(study, candidate)
        assert written.timesteps
        assert not candidate.timesteps
        assert fitness(written) == fitness(candidate)
        assert study.costs.of(written) == study.costs.of(candidate)


def test_the_weights_kept_change_no_score_and_room_is_made_before_it_is_taken(
    study: Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache, held = WeightCache(study.pipe, study.library, limit=1), list[int]()

    def noted(*given: Any) -> Weights:
        held.append(cache.weight_bytes - parameter_bytes(study.pipe.transformer))
        return realise(*given)

    monkeypatch.setattr("diff_es.scoring.weight_cache.realise", noted)
    few, all_of_them = fitness_of(study, 2, weights=cache), fitness_of(study, 2)
    for candidate in drawn(study, 2):
        score, before = few(candidate), len(held)
        assert score == all_of_them(candidate)
        del held[before:]  # of the other
    assert held
    assert len(study.units) > 1 or not any(held)


def test_rivals_that_cannot_be_made_so_cheap_are_left_out(study: Study) -> None:
    for budget, left_out in ((0.9, set[str]()), (0.4, None), (0.1, {"uniform", "mosaicdiff"})):
        cheapest = study.costs.space(budget).cheapest()
        found = Found(budget, cheapest, 0.0, 0.0, (), (), 0)
        rivals = {rival.name: rival for rival in contenders(study, found, found)}
        assert {"fewer-steps", "random", "diff-es"} <= set(rivals)
        assert all(rival.macs_ratio <= budget for rival in rivals.values() if rival.name != "fewer-steps")
        assert left_out is None or {"uniform", "mosaicdiff"} - set(rivals) == left_out


# ----------------------------------------------------------------------------------------------------------- racing


@pytest.mark.parametrize("rung", [1, 2])
def test_a_first_rung_is_a_part_of_the_score(study: Study, rung: int) -> None:
    alone = Sampling(CALL.steps, CALL.guidance, 1)  # one probe a call, with or without rungs
    racing, plain = (fitness_of(study, 3, sampling=alone, rung=n) for n in (rung, 0))
    first = fitness_of(study, rung, sampling=alone)
    for candidate in drawn(study, 1)[::2]:
        score = racing.first(candidate)
        assert score == pytest.approx(first(candidate), rel=1e-12)
        calls = racing.calls
        assert racing.second(candidate, score) == pytest.approx(plain(candidate), rel=1e-12)
        assert racing.first(candidate) == score
        assert racing.calls - calls <= len(study.timesteps(candidate) or ()) * (3 - rung)  # none of the rung again
    in_one, in_two = (fitness_of(study, 3, rung=n).plain(study.own) for n in (0, rung))
    assert in_two == pytest.approx(in_one, rel=1e-3)


def lines_of(journal: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in journal.read_text().splitlines()[1:]]


@pytest.mark.parametrize("levers", [Levers.BOTH, Levers.PRUNE])
def test_scores_of_rungs_never_meet_the_others(levers: Levers, tmp_path: Path) -> None:
    journal = tmp_path / "journal.jsonl"
    chosen = joint(levers=levers, population=6, **FEW)
    fast = compress(tiny(), 0.6, chosen, run=Run(journal=journal))
    ready = prepare(tiny(), chosen)
    fitness = ready.fitness("search", chosen.search_noises, chosen.rung_noises)
    judges: dict[Scale, Callable[[Candidate], float]] = {
        Scale.ALL: fitness,
        Scale.RUNG: fitness.first,
        Scale.ALONE: ready.fitness_alone(),
    }
    found: dict[str, dict[Candidate, float]] = {scale: {} for scale in judges}
    for line in lines_of(journal):
        candidate = Candidate.from_json(line["candidate"])
        assert candidate not in found[line["scale"]], "nothing is run twice"
        found[line["scale"]][candidate] = line["score"]
    finalists = found_again(fast.report).finalists
    assert (
        found["all"].keys() - {one.candidate for one in finalists} < found["heat"].keys()
    )  # the better half of each rung went on
    for scale, scores in found.items():
        for candidate, score in list(scores.items())[:: max(1, len(scores) // 6)]:
            assert judges[Scale(scale)](candidate) == pytest.approx(score, rel=1e-9)
    for one in finalists:
        assert not one.corrected or one.score == found["all"][one.candidate]


@pytest.mark.parametrize("levers", [Levers.BOTH, Levers.PRUNE])
def test_finalists_have_run_on_all_probes(levers: Levers) -> None:
    """Even a first candidate that a wrong table of sensitivities puts forward, and that drops out on its rung."""
    ready, quiet = prepare(tiny(), joint(levers=levers, population=6, **FEW)), Reporter(quiet=True)
    wrong = tuple((tuple(map(float, [0, *range(4, 1, -1)])),) for _ in range(3))
    steps = (
        None if ready.costs.choices is None else tuple({n: float(n) for n in found} for found in ready.costs.choices)
    )
    evaluator = Evaluator(ready, Journal(None, {}, resume=False))
    found = evolve(ready, (0.6,), evaluator, Sensitivity(wrong, steps), quiet)[0]
    assert all(np.isfinite(one.score) for one in found.finalists)


@pytest.mark.parametrize(("levers", "seed"), [(Levers.PRUNE, 0), (Levers.STEPS, 2), (Levers.BOTH, 2)])
def test_a_larger_budget_is_never_further_away_on_the_noises_that_chose(levers: Levers, seed: int) -> None:
    """Though what is found for it may be: it was searched on two noises, and is judged on others."""
    little = joint(levers=levers, seed=seed, held_out_noises=2, population=4, **FEW)
    ready, quiet = prepare(tiny(), little), Reporter(quiet=True)
    evaluator = Evaluator(ready, Journal(None, {}, resume=False))
    found = evolve(ready, (1.0, 0.6, 0.8), evaluator, sensitivity(ready, evaluator, quiet), quiet)
    assert [one.limit for one in found] == [0.6, 0.8, 1.0]
    for one in found:
        winner = one.finalists[0]
        assert ready.costs.ratio(one.candidate) <= one.limit
        assert (winner.candidate, winner.score, winner.corrected) == (one.candidate, one.score, one.corrected)
        assert one.score == (
            evaluator.score(one.candidate) if one.corrected else evaluator.scorer.fitness.plain(one.candidate)
        )
        assert one.held_out == pytest.approx(fmean(ready.fresh.each(one.candidate, corrected=one.corrected)), rel=1e-12)
        for other in one.finalists:
            assert winner.held_out >= other.held_out or other.noises < winner.noises
    for one, larger in itertools.pairwise(found):
        assert (one.candidate, one.corrected) in [(other.candidate, other.corrected) for other in larger.finalists]


def test_steps_alone_are_a_part_of_steps_and_levels() -> None:
    """Draw by draw: what their search and rules of hand put forward is in the final of both, with the same scores."""
    found = {}
    for levers in (Levers.STEPS, Levers.BOTH):
        ready, quiet = prepare(tiny(), joint(levers=levers, population=4, **FEW)), Reporter(quiet=True)
        evaluator = Evaluator(ready, Journal(None, {}, resume=False))
        found[levers] = evolve(ready, (0.6, 0.8), evaluator, sensitivity(ready, evaluator, quiet), quiet)
    others = set[
        Candidate
    ]()  # the smaller budget's winner, and random schedules, of which both draw fewer of this kind
    for alone, both in zip(found[Levers.STEPS], found[Levers.BOTH], strict=True):
        space = ready.costs.space(alone.limit).dense()
        assert space is not None
        others |= set(random_search(space, 4, seed=derive_seed(0, "random search") % 2**32).ask())
        scores = {(one.candidate, one.corrected): one.score for one in both.finalists}
        own = [one for one in alone.finalists if one.candidate not in others]
        assert len(own) > ready.settings.finalists
        assert all(scores[widened(ready, one.candidate), one.corrected] == one.score for one in own)
        others = {alone.candidate}


@given(st.data())
def test_steps_that_were_found_are_pruned_with_the_least_error(data: st.DataObject) -> None:
    counts = tuple(data.draw(st.integers(1 if stage == 0 else 0, 3)) for stage in range(3))
    numbers = st.lists(st.integers(0, 9), min_size=3, max_size=3)
    costs = tuple((tuple(data.draw(numbers)),) for _ in counts)
    errors = tuple((tuple(float(error) for error in data.draw(numbers)),) for _ in counts)
    picks = list(itertools.product(range(3), repeat=3))  # of the level of each stage
    spent = [sum(n * (1 + costs[s][0][one[s]]) for s, n in enumerate(counts)) for one in picks]
    budget = data.draw(st.integers(min(spent), max(spent)))
    offered = Steps(((1, 2, 3), (0, 1, 2, 3), (0, 1, 2, 3)), (1, 0, 0))
    found = Sensitivity(errors, None).pruned(Space(costs, budget, offered, (1,) * 3), counts)
    fits = [one for one, cost in zip(picks, spent, strict=True) if cost <= budget]
    assert found.error == min(sum(errors[s][0][one[s]] for s, n in enumerate(counts) if n) for one in fits)
    assert found.candidate.steps == counts
    chosen = tuple(level for (level,) in found.candidate.levels)
    assert found.cost == spent[picks.index(chosen)] <= budget


@pytest.mark.parametrize("seed", range(4))
def test_none_of_the_most_promising_prunings_is_missed(seed: int) -> None:
    """Most schedules of steps are passed over by what the bound of the knapsack tells."""
    rng, ready = np.random.default_rng(seed), prepare(tiny(), joint())
    choices, options = ready.costs.choices or (), ready.costs.options
    errors = tuple(
        tuple((0.0, *np.cumsum(rng.exponential(0.02, len(row) - 1)).tolist()) for row in options) for _ in choices
    )
    table, space = Sensitivity(errors, None), ready.costs.space(0.5)
    counts = {tuple(int(rng.choice(n)) for n in choices) for _ in range(80)}
    dense = [[0] * len(options)] * len(choices)
    scores = {Candidate.of(dense, steps): float(rng.uniform(0, 40)) for steps in sorted(counts)}
    known, at_least = {}, table.relaxed(space)
    for candidate, score in scores.items():
        if space.pays(candidate.steps):
            point = table.pruned(space, candidate.steps)
            known[point.candidate] = ready.settings.measure.error(score), point.error
            assert at_least(candidate.steps) <= point.error
    expected = list[Candidate]()
    for doubt in (1.0, 2.0, 4.0):
        foretold = sorted(known, key=lambda one: (known[one][0] + doubt * known[one][1], one))
        expected += [one for one in foretold if one not in expected][:2]
    assert _pruned(ready, space, scores, table) == expected


# ---------------------------------------------------------------------------------------------------------- resuming


@pytest.mark.slow
def test_killed_ten_times_and_resumed_equals_uninterrupted(tmp_path: Path) -> None:
    whole, torn, draws, counts = tmp_path / "whole.jsonl", tmp_path / "torn.jsonl", random.Random(0), list[int]()
    little = joint(front=(0.3, 0.9), population=4, held_out_noises=1, **FEW)

    def lines() -> int:
        return len(torn.read_bytes().splitlines()) if torn.exists() else 0

    expected = compress(tiny(), 0.6, little, run=Run(journal=whole))
    for _ in range(10):
        least, child = lines() + draws.randrange(6), os.fork()
        if child == 0:
            try:
                compress(tiny(), 0.6, little, run=Run(journal=torn, resume=True))
            finally:
                os._exit(0)
        while lines() < least:
            assert os.waitpid(child, os.WNOHANG) == (0, 0), "it ended before it could be killed"
            time.sleep(0.005)  # looking on takes time as well
        time.sleep(draws.random() * 0.05)
        os.kill(child, signal.SIGKILL)
        assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL
        counts.append(lines())
    assert counts[0] < counts[-1] < len(whole.read_bytes().splitlines())
    compress(tiny(), 0.6, little, run=Run(journal=torn, resume=True)).save(tmp_path / "out")
    found = load(tmp_path / "out")
    assert len(found.others) == len(expected.others) == 2
    for one, other in zip((found, *found.others), (expected, *sorted_points(expected.others)), strict=True):
        assert (one.schedule, one.timesteps) == (other.schedule, other.timesteps)
        assert one.report == other.report
        assert_same_plans(one.plans, other.plans)
    assert sorted(torn.read_bytes().splitlines()) == sorted(whole.read_bytes().splitlines())


# ------------------------------------------------------------------------------------------------- the table again


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A result whose table another budget begins with."""
    folder = tmp_path_factory.mktemp("table") / "first"
    compress(tiny(), 0.6, joint(**FEW)).save(folder)
    return folder


def test_a_second_budget_measures_no_sensitivity_again(first: Path, tmp_path: Path) -> None:
    anew, again = tmp_path / "anew.jsonl", tmp_path / "again.jsonl"
    expected = compress(tiny(), 0.8, joint(**FEW), run=Run(journal=anew))
    found = compress(tiny(), 0.8, joint(**FEW), run=Run(journal=again, table=first))
    assert (found.schedule, found.timesteps, found.report) == (expected.schedule, expected.timesteps, expected.report)
    told = [
        [{**line, "check": None} for line in lines_of(journal)] for journal in (anew, again)
    ]  # of their own journal
    searched = [line for line in told[0] if line["scale"] != "alone"]
    assert told[1] == searched != told[0]
    with pytest.raises(DiffESError, match=r"again.jsonl: expected the settings the search began with, found table '"):
        compress(tiny(), 0.8, joint(**FEW), run=Run(journal=again, resume=True))


def test_a_table_of_something_else_is_refused_by_name(first: Path) -> None:
    others = joint(**FEW, seed=1), joint(**FEW, measure=ImageSSIM()), joint(**FEW, sensitivity_levels=2)
    names = "seed 0 then and 1 now", "measure", r"sensitivity_levels \d then and 2 now"
    for other, named in zip(others, names, strict=True):
        with pytest.raises(DiffESError, match=rf"table of .*first: expected sensitivities of this .*{named}"):
            compress(tiny(), 0.8, other, run=Run(table=first))
    with pytest.raises(DiffESError, match=r"model .[0-9a-f]+. then"):
        compress(tiny(seed=1), 0.8, joint(**FEW), run=Run(table=first))


@given(st.lists(st.floats(1e-9, 1e3), min_size=3, max_size=9, unique=True), st.booleans())
def test_levels_that_were_not_measured_lie_between_their_neighbours(errors: list[float], first: bool) -> None:
    measured = {0: 0.0, **{2 * i + (1 if first else 2): error for i, error in enumerate(sorted(errors))}}
    filled = _filled(measured)
    assert len(filled) == max(measured) + 1
    assert all(filled[level] == error for level, error in measured.items())
    assert all(a <= b * (1 + 1e-9) for a, b in itertools.pairwise(filled))


def sorted_points(points: Sequence[Compressed]) -> list[Compressed]:
    return sorted(points, key=lambda point: point.report.macs_ratio)
