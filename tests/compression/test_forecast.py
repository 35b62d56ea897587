"""What a search would take: its calls counted without the model, and refused where it does not fit."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import pairwise
from typing import Any, NamedTuple

import pytest
import torch
from diffusers import DPMSolverMultistepScheduler
from tests.helpers.pipelines import CASES, made
from tests.helpers.tiny import CALL, EIGHT, assert_same, joint, settings, snapshot, tiny
from torch import nn

from diff_es import DiffESError, Forecast, Levers, Run, Settings, compress, forecast
from diff_es.compression.evaluator import Evaluator
from diff_es.compression.machine import machine_of
from diff_es.compression.sensitivity import sensitivity
from diff_es.compression.simulation import simulate
from diff_es.compression.study import study, wanted_of
from diff_es.compression.survey import survey
from diff_es.layers import Anatomy, Plan, Weights
from diff_es.pipelines.families import Pipeline
from diff_es.pipelines.probes import make_probes
from diff_es.pipelines.sampling import denoiser_of, sample
from diff_es.pruning.budget import Budget
from diff_es.pruning.calibration import calibrate
from diff_es.routing.realise import realise
from diff_es.scoring import fitness
from diff_es.scoring.fidelity import ImagePSNR
from diff_es.scoring.imagined import Tally
from diff_es.scoring.journal import Journal
from diff_es.utils.progress import Reporter, Task
from diff_es.utils.spill import Spill

QUIET = Reporter(quiet=True)
SEARCHES = {
    "levels": settings(stages=6, method=EIGHT, search_noises=4, generations=2, population=4, held_out_noises=2),
    "steps and levels": joint(search_noises=4, generations=2, population=4, held_out_noises=2),
    "steps": joint(levers=Levers.STEPS, search_noises=4, generations=2, population=4, held_out_noises=2),
}


class Ran(NamedTuple):
    """Fitnesses that were made, and the samples' calls of their references, which they do not count."""

    fitnesses: list[fitness.Fitness]
    references: list[int]

    @property
    def calls(self) -> int:
        return sum(one.calls for one in self.fitnesses) + sum(self.references)


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> Ran:
    seen, learn, begin = Ran([], []), fitness.Fitness._learn, fitness.Fitness.__init__

    def begun(self: fitness.Fitness, *args: Any) -> None:
        seen.fitnesses.append(self)
        begin(self, *args)

    def learned(self: fitness.Fitness, chunk: int, reference: Any) -> Any:
        if self._path is not None:
            seen.references.append(len(reference or self._path.timesteps) * len(self._chunks[chunk]))
        return learn(self, chunk, reference)

    monkeypatch.setattr(fitness.Fitness, "__init__", begun)
    monkeypatch.setattr(fitness.Fitness, "_learn", learned)
    return seen


@pytest.mark.parametrize("name", SEARCHES)
def test_the_calls_of_a_search_are_foretold(name: str, ran: Ran) -> None:
    """To a few in a hundred: which candidates a search comes to depends on their scores."""
    pipe, chosen = tiny(), SEARCHES[name]
    work = simulate(survey(pipe, chosen, QUIET, Budget.of(0.7)))
    ran.fitnesses.clear()
    ran.references.clear()
    compress(pipe, 0.7, chosen)
    foretold = sum(one.calls for one in (work.sensitivity, work.search, work.final))
    assert foretold == pytest.approx(ran.calls, rel=0.1)


def test_the_table_is_foretold_to_the_call(ran: Ran) -> None:
    for chosen in SEARCHES.values():
        surveyed = survey(tiny(), chosen, QUIET, Budget.of(0.7))
        work, again = simulate(surveyed), simulate(surveyed)
        assert work == again
        assert simulate(surveyed, table=True).sensitivity.calls == 0
        assert work.calibration.calls == (0 if chosen.levers is Levers.STEPS else surveyed.calibration_samples * 6)
        assert work.reference.calls == (6 if chosen.levers is Levers.PRUNE else 12)


class Noting(Reporter):
    """The samples' calls after each unit of the tasks."""

    def __init__(self, ran: Ran) -> None:
        super().__init__(quiet=True)
        self.ran, self.calls = ran, list[int]()

    @contextmanager
    def task(self, description: str, total: int) -> Iterator[Task]:
        yield self

    def advance(self, note: str = "") -> None:
        self.calls.append(self.ran.calls)


def test_how_far_a_table_is_after_each_candidate_is_foretold(ran: Ran) -> None:
    surveyed = survey(tiny(), SEARCHES["levels"], QUIET, Budget.of(0.7))
    work, ready, noting = simulate(surveyed), study(surveyed, QUIET), Noting(ran)
    ran.fitnesses.clear()
    ran.references.clear()
    sensitivity(ready, Evaluator(ready, Journal(None, {}, resume=False)), noting)
    after = work.tasks["measure sensitivity"]
    assert [one.calls for one in after] == noting.calls
    assert after[-1] == work.sensitivity
    assert after[len(after) // 2].calls > 0.6 * after[-1].calls, "the first stages are those that run the longest"


def test_all_that_is_run_belongs_to_some_task() -> None:
    for chosen in SEARCHES.values():
        work = simulate(survey(tiny(), chosen, QUIET, Budget.of(0.7)))
        assert all(a.calls <= b.calls for after in work.tasks.values() for a, b in pairwise(after))
        whole = sum((after[-1] for after in work.tasks.values()), Tally())
        assert 0 <= (work.sensitivity + work.search - whole).calls <= 0.1 * whole.calls  # the last part fills no task


def test_what_is_known_of_steps_that_look_ahead_is_not_foretold_for_others(ran: Ran) -> None:
    """Samplers of third order lower it towards the end."""
    pipe = tiny(scheduler=DPMSolverMultistepScheduler, options={"solver_order": 3})
    surveyed = survey(pipe, SEARCHES["steps"], QUIET, Budget.of(0.7))
    work, plain = simulate(surveyed), simulate(survey(tiny(), SEARCHES["steps"], QUIET, Budget.of(0.7)))
    ready = study(surveyed, QUIET)
    ran.fitnesses.clear()
    ran.references.clear()
    sensitivity(ready, Evaluator(ready, Journal(None, {}, resume=False)), QUIET)
    assert work.sensitivity.calls == ran.calls
    assert work.sensitivity.calls > plain.sensitivity.calls


@pytest.mark.parametrize("room", [20_000, 1_000_000])
def test_the_weights_that_a_table_lays_out_are_foretold(room: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """However little of them is kept; what is re-solved is not copied."""
    sizes = list[int]()

    def noted(denoiser: nn.Module, anatomy: Anatomy, plan: Plan) -> Weights:
        weights, solved = realise(denoiser, anatomy, plan), set[int]()
        for cut in plan.cuts.values():
            solved |= {tensor.data_ptr() for tensor in (cut.weight, cut.bias) if tensor is not None}
        sizes.append(sum(t.nbytes for t in weights.tensors.values() if t.data_ptr() not in solved))
        return weights

    monkeypatch.setattr("diff_es.scoring.weight_cache.realise", noted)
    surveyed = survey(tiny(), SEARCHES["levels"], QUIET, Budget.of(0.7))
    ready = study(surveyed, QUIET, room)
    sensitivity(ready, Evaluator(ready, Journal(None, {}, resume=False)), QUIET)
    assert sizes
    foretold = simulate(surveyed, room).sensitivity
    assert foretold.laid_out == pytest.approx(sum(sizes), rel=0.02)
    assert foretold.units == pytest.approx(len(sizes), rel=0.02)


@pytest.mark.parametrize("room", [20_000, 80_000, 200_000, 1_000_000])
def test_the_weights_that_a_table_reads_from_disk_are_foretold(room: int, monkeypatch: pytest.MonkeyPatch) -> None:
    surveyed, read, get = survey(tiny(), SEARCHES["levels"], QUIET, Budget.of(0.7)), list[int](), Spill.get

    def noted(self: Spill, key: Any) -> torch.Tensor:
        found = get(self, key)
        read.append(found.nbytes)
        return found

    ready = study(surveyed, QUIET, room)
    monkeypatch.setattr(Spill, "get", noted)
    sensitivity(ready, Evaluator(ready, Journal(None, {}, resume=False)), QUIET)
    monkeypatch.undo()
    foretold = simulate(surveyed, room).sensitivity.read
    assert bool(read) == (room < 1_000_000)
    assert foretold == pytest.approx(sum(read), rel=0.12), "by units, of which layers may still be there"


def test_the_images_that_a_table_compares_are_foretold_and_priced(monkeypatch: pytest.MonkeyPatch) -> None:
    seen, view = list[int](), ImagePSNR.view

    def noted(self: ImagePSNR, pipe: Pipeline, latents: torch.Tensor) -> torch.Tensor:
        seen.append(len(latents))
        return view(self, pipe, latents)

    monkeypatch.setattr(ImagePSNR, "view", noted)
    surveyed = survey(tiny(), replace(SEARCHES["levels"], measure=ImagePSNR()), QUIET, Budget.of(0.7))
    ready = study(surveyed, QUIET)
    seen.clear()
    sensitivity(ready, Evaluator(ready, Journal(None, {}, resume=False)), QUIET)
    found = simulate(surveyed).sensitivity
    assert found.compared == sum(seen) > 0
    machine = machine_of(surveyed)
    free = replace(machine.speed, look=0.0).seconds(found, surveyed.counter.dense())
    assert machine.speed.look > 0
    priced = machine.speed.seconds(found, surveyed.counter.dense())
    assert priced == pytest.approx(free + machine.speed.look * found.compared)


@pytest.mark.parametrize("name", ["SD", "Wan"])
def test_a_search_among_steps_is_foretold_and_leaves_its_pipeline_alone(name: str) -> None:
    """Guidance in calls of its own, as Wan has it, makes two denoiser calls of each timestep."""
    case = CASES[name]
    pipe, chosen = made(case.make), joint(levers=Levers.STEPS, sampling=case.sampling, prompts=("a fox", "a hat"))
    probes = make_probes(pipe, 2, 0, "test", chosen.prompts)
    dense = sample(pipe, probes, case.sampling)  # models remember things from their first call on
    scheduler, before = pipe.scheduler, snapshot(denoiser_of(pipe))
    assert forecast(pipe, 0.7, chosen).seconds > 0
    assert pipe.scheduler is scheduler
    assert_same(before, snapshot(denoiser_of(pipe)))
    assert torch.equal(sample(pipe, probes, case.sampling), dense)


def test_parts_of_statistics_repeat_calibration() -> None:
    surveyed = survey(tiny(), settings(), QUIET, Budget.of(0.7))
    once, often = simulate(surveyed), simulate(surveyed, 20_000)
    assert once.passes == 1 < often.passes
    assert once.calibration.calls < often.calibration.calls < often.passes * once.calibration.calls
    calls, pipe = 0, tiny()

    def count(*_: object) -> None:
        nonlocal calls
        calls += CALL.batch

    pipe.transformer.register_forward_hook(count)
    probes = make_probes(pipe, surveyed.calibration_samples, 0, "calibration")
    calibrate(pipe, probes, CALL, surveyed.stages, wanted_of(surveyed), QUIET, 20_000)
    assert often.calibration.calls == calls, "passes end where their stages do"
    assert often.search.calls > once.search.calls  # known steps keep to the limit too


def test_a_forecast_leaves_the_pipeline_as_it_was_and_names_every_phase() -> None:
    pipe = tiny()
    before = snapshot(pipe.transformer)
    found = forecast(pipe, 0.7, joint())
    assert list(found.phases) == [
        "look at the reference",
        "calibrate",
        "rank and compensate",
        "sensitivity",
        "search",
        "final",
    ]
    assert all(seconds > 0 for seconds in found.phases.values())
    assert found.seconds == pytest.approx(sum(found.phases.values()))
    assert (found.passes, found.disk) == (1, 0)
    assert found.result > 0
    assert set(forecast(pipe, 0.7, joint(levers=Levers.STEPS)).phases) == {
        "look at the reference",
        "sensitivity",
        "search",
        "final",
    }
    assert_same(before, snapshot(pipe.transformer))


def test_what_does_not_fit_is_refused_with_the_setting_that_would(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DiffESError, match=r"memory: expected at least 0\.\d+ GB, for transformer_blocks\.\d\.ff"):
        forecast(tiny(), 0.7, settings(), Run(memory=1e-6))
    module = sys.modules[Forecast.__module__]
    monkeypatch.setattr(module, "free_memory", lambda device: 1000)
    monkeypatch.setattr(module, "held_memory", lambda device: 0)
    with pytest.raises(DiffESError, match=r"memory: expected .* GB, by the forecast, found .*--memory"):
        forecast(tiny(), 0.7, settings(), Run(memory=1.0))
    monkeypatch.undo()
    room = shutil.disk_usage("/")._replace(free=10)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: room)
    with pytest.raises(DiffESError, match=r"disk of .*expected .* GB, by the forecast, found 0.0 GB.*TMPDIR"):
        forecast(tiny(), 0.7, Settings(sampling=settings().sampling, stages=3), Run(memory=0.00002))
