"""Steps alone: nothing is pruned, so it makes no difference what could be, and nothing is calibrated or ranked."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
import torch
from diffusers import EulerDiscreteScheduler
from tests.helpers.pipelines import CASES, made
from tests.helpers.tiny import CALL, calls_of, images, joint, tiny

from diff_es import BudgetOutOfReach, Compressed, Depth, Method, Run, Width, compress
from diff_es.compression.settings import Levers
from diff_es.compression.study import study
from diff_es.compression.survey import survey
from diff_es.layers import DENSE, discover
from diff_es.pipelines.families import FAMILIES, Asked
from diff_es.pipelines.probes import make_probes
from diff_es.pipelines.sampling import denoiser_of, sample
from diff_es.pruning.granularity import Granularity
from diff_es.utils.progress import Reporter, Task

SMALL = {
    "stages": 2,
    "levers": Levers.STEPS,
    "population": 2,
    "generations": 1,
    "timestep_generations": 1,
    "finalists": 1,
    "survivors": 1,
    "search_noises": 1,
    "held_out_noises": 1,
    "first_rung": 0,
}
WORK = ("calibrate", "rank", "rank and compensate", "time layers")


class Heard(Reporter):
    """Says nothing, and keeps the names of all work."""

    def __init__(self) -> None:
        super().__init__(quiet=True)
        self.tasks = list[str]()

    @contextmanager
    def task(self, description: str, total: int) -> Iterator[Task]:
        self.tasks.append(description)
        with super().task(description, total) as task:
            yield task


def stepped_alone(pipe: Any, budget: float = 0.6, **changes: Any) -> tuple[Compressed, list[str]]:
    reporter = Heard()
    return compress(pipe, budget, joint(**{**SMALL, **changes}), run=Run(reporter=reporter)), reporter.tasks


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.steppable])
def test_every_family_whose_sampler_can_be_stepped(name: str) -> None:
    case = CASES[name]
    pipe = made(case.make)
    prompts = ("a fox", "a hat") if FAMILIES[type(pipe).__name__].asked is Asked.PROMPTS else None
    fast, tasks = stepped_alone(pipe, 0.4, sampling=case.sampling, prompts=prompts, method=Method())
    assert not set(tasks) & set(WORK), tasks
    assert all(plan == DENSE for plan in fast.plans)
    assert fast.report.units == ("denoiser",)
    assert fast.timesteps is not None
    assert 1 <= len(fast.timesteps) <= 2  # of 5
    probes = make_probes(pipe, 2, 1, "test", prompts)
    before = sample(pipe, probes, case.sampling)
    with calls_of(denoiser_of(pipe)) as calls, fast.routed(pipe):
        assert not torch.equal(sample(pipe, probes, case.sampling), before)
    assert calls[0] == len(fast.timesteps) * case.calls
    assert torch.equal(sample(pipe, probes, case.sampling), before)


@pytest.mark.parametrize(
    ("ladder", "grain"),
    [
        (Width(), Granularity.KIND),
        (Depth(), None),
        (Depth(), Granularity.BLOCK),
        (Width(depth=Depth()), Granularity.WHOLE),
    ],
    ids=str,
)
def test_no_ladder_and_no_grain_matters(ladder: Width | Depth, grain: Granularity | None) -> None:
    """Blocks that differ are skipped by rank in none of these, and a ladder of depth has no units but the whole."""
    pipe, case = made(CASES["SD"].make), CASES["SD"]
    chosen = joint(**SMALL, sampling=case.sampling, method=Method(ladder, granularity=grain))
    ready = study(survey(pipe, chosen, Reporter(quiet=True)), Reporter(quiet=True))
    assert [(unit.name, len(unit.options)) for unit in ready.units] == [("denoiser", 1)]
    assert ready.library.units == ready.units


@pytest.mark.parametrize("choice", ["use_karras_sigmas", "use_exponential_sigmas"])
def test_steps_that_crowd_towards_the_image(choice: str) -> None:
    """Of which the last stage begins within a few timesteps of the end, with no room for four times its own."""
    fast, _ = stepped_alone(
        tiny(scheduler=EulerDiscreteScheduler, options={choice: True}),
        stages=4,
        sampling=replace(CALL, num_inference_steps=20),
    )
    assert fast.timesteps is not None


def test_a_denoiser_of_which_nothing_can_be_pruned() -> None:
    pipe = tiny()
    for block in pipe.transformer.transformer_blocks:
        block.attn1.to_k = torch.nn.Sequential(block.attn1.to_k)
        block.ff.net[2] = torch.nn.Sequential(block.ff.net[2])
    assert not discover(pipe.transformer).layers
    fast, _ = stepped_alone(pipe)
    dense = images(pipe)
    with fast.routed(pipe):
        assert not torch.equal(images(pipe), dense)
    assert torch.equal(images(pipe), dense)


def test_a_budget_out_of_reach_names_one_that_is_not() -> None:
    with pytest.raises(BudgetOutOfReach, match=r"which the fewest steps cost.*Ask for [0-9.]+ or more\.$") as caught:
        stepped_alone(tiny(), 0.1)
    named = re.search(r"Ask for ([0-9.]+) or more", str(caught.value))
    assert named is not None
    fast, _ = stepped_alone(tiny(), float(named[1]))
    assert len(fast.timesteps or ()) == 1
