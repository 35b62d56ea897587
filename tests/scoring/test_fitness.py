"""Laws of the fitness: it is the closeness of routed to dense images, however little of a run is really run."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from diffusers import (
    DiTPipeline,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    LCMScheduler,
    TCDScheduler,
)
from tests.helpers.tiny import CALL, assert_same, calls_of, opened, settings, snapshot, tiny
from torch import Tensor

from diff_es import Depth, Method, Sampling
from diff_es.compression.study import Study, prepare
from diff_es.pipelines.probes import Probe, make_probes
from diff_es.pipelines.sampling import sample
from diff_es.routing.routing import routed
from diff_es.scoring.fidelity import ImagePSNR, ImageSSIM, LatentSNR, Measure
from diff_es.scoring.fitness import Comparison, Fitness
from diff_es.scoring.metrics import EXACT_DB, ssim
from diff_es.search import Candidate
from diff_es.solvers.prefix_cache import PrefixCache

KINDS = {
    "DDIM": {},
    "DPM": {"scheduler": DPMSolverMultistepScheduler, "activation": "geglu"},
    "Euler": {"scheduler": EulerDiscreteScheduler, "sigma": True},
    "bfloat16": {"dtype": torch.bfloat16},
    "LCM": {"scheduler": LCMScheduler},
    "TCD": {"scheduler": TCDScheduler},
    "Euler, ancestral": {"scheduler": EulerAncestralDiscreteScheduler},
}


def of(*levels: int) -> Candidate:
    """From the level of each stage."""
    return Candidate.of([[level] for level in levels])


DENSE = of(0, 0, 0)


@pytest.fixture(scope="module", params=[*KINDS, "depth"])
def any_study(request: pytest.FixtureRequest) -> Study:
    if request.param == "depth":
        return prepare(tiny(), settings(method=Method(Depth())))
    return prepare(tiny(**KINDS[request.param]), settings())


def fitness_of(study: Study, *, memory: int = 1 << 30, count: int = 3, measure: Measure | None = None) -> Fitness:
    """Several chunks: the batch is 2."""
    probes = make_probes(study.pipe, count, 0, "search")
    return Fitness(
        study.pipe,
        study.library,
        study.stages,
        probes,
        CALL,
        measure or LatentSNR(),
        Comparison(known=PrefixCache(memory)),
    )


def schedules(study: Study, count: int, seed: int = 0) -> list[Candidate]:
    """Random ones, some of them twice."""
    draws = np.random.default_rng(seed).integers(0, len(study.units[0].options), (count, 3)).tolist()
    return [of(*levels) for levels in [*draws, *draws[:2]]]


def user_images(pipe: DiTPipeline, probes: tuple[Probe, ...]) -> Tensor:
    """What a user gets for these probes, one pipeline call per batch of 2."""
    shown = []
    for i in range(0, len(probes), 2):
        part = probes[i : i + 2]
        generators = [torch.Generator().manual_seed(probe.seed) for probe in part]
        labels = [probe.condition for probe in part]
        call = {"guidance_scale": CALL.guidance, "num_inference_steps": CALL.steps, "output_type": "pt"}
        shown.append(pipe(class_labels=labels, generator=generators, **call).images)
    return torch.cat(shown)


def test_reusing_prefixes_changes_no_score(any_study: Study) -> None:
    plain = fitness_of(any_study, memory=0)
    denoiser = any_study.pipe.transformer
    output = 4 * 8 * 8 * denoiser.config.out_channels * denoiser.dtype.itemsize
    reusing = [fitness_of(any_study, memory=memory) for memory in (1 << 30, 1, 25 * output, 50 * output)]
    for candidate in schedules(any_study, 4):
        expected = plain(candidate)
        assert [fitness(candidate) for fitness in reusing] == [expected] * len(reusing)
    assert plain.cache.hits == reusing[1].cache.hits == 0
    assert any(reusing[0].cache.hits > partly.cache.hits > 0 for partly in reusing[2:])


def test_scores_do_not_depend_on_what_was_asked_before(any_study: Study) -> None:
    first, second = fitness_of(any_study), fitness_of(any_study)
    asked = schedules(any_study, 6, seed=1)
    forwards = {candidate: first(candidate) for candidate in asked}
    assert {candidate: second(candidate) for candidate in reversed(asked)} == forwards
    assert len(set(forwards.values())) > 1


def test_the_dense_schedule_is_exact(any_study: Study) -> None:
    assert fitness_of(any_study)(DENSE) == EXACT_DB
    assert fitness_of(any_study, memory=0)(DENSE) == EXACT_DB


def test_known_steps_are_not_run(study: Study) -> None:
    """2 steps a stage; 3 probes in batches of 2 are 2 chunks."""
    chunks, steps = 2, 2
    with calls_of(study.pipe.transformer.pos_embed) as runs:
        fitness = fitness_of(study)
        assert runs[0] == 3 * steps * chunks  # the dense teacher

        def cost(*levels: int) -> int:
            before = runs[0]
            fitness(of(*levels))
            return (runs[0] - before) // (steps * chunks)

        assert cost(0, 0, 0) == 0
        assert cost(0, 0, 2) == 1
        assert cost(0, 1, 2) == 2
        assert cost(3, 1, 2) == 3
        assert cost(3, 1, 1) == 1
        assert cost(0, 1, 1) == 1
        assert [cost(*levels) for levels in ((3, 1, 2), (0, 0, 2), (0, 1, 1))] == [0, 0, 0]
        without = fitness_of(study, memory=0)
        before = runs[0]
        without(DENSE)
        assert runs[0] - before == 3 * steps * chunks


def test_the_cache_keeps_its_limit(study: Study) -> None:
    output = 4 * 4 * 8 * 8 * 4  # a batch of 2, twice for guidance; float32
    with calls_of(study.pipe.transformer.pos_embed) as runs:
        fitness = fitness_of(study, memory=12 * output, count=2)  # and the result of each step
        before = runs[0]
        fitness(DENSE)
        assert runs[0] == before  # all six steps are held
        fitness(of(1, 0, 0))
        before = runs[0]
        fitness(DENSE)
        assert runs[0] == before + 6  # and all were pushed out by six others


def test_the_score_is_the_snr_of_the_images_latents(study: Study) -> None:
    """Recomputed from the user's own pipeline calls, by keeping what reaches the decoder."""
    probes = make_probes(study.pipe, 3, 0, "search")
    candidate = of(1, 3, 2)
    latents = list[Tensor]()
    handle = study.pipe.vae.post_quant_conv.register_forward_pre_hook(lambda m, args: latents.append(args[0]))
    user_images(study.pipe, probes)
    plans = [study.library.plan(stage, levels) for stage, levels in enumerate(candidate.levels)]
    with routed(study.pipe.transformer, study.stages, opened(study.pipe, plans)):
        user_images(study.pipe, probes)
    handle.remove()
    dense, pruned = (torch.cat(latents[i : i + 2]).numpy().astype(np.float64) for i in (0, 2))
    signal, noise = ((x**2).sum((1, 2, 3)) for x in (dense, pruned - dense))
    assert fitness_of(study)(candidate) == pytest.approx((10 * np.log10(signal / noise)).mean(), rel=1e-9)


@pytest.mark.parametrize("measure", [ImagePSNR(), ImageSSIM()])
def test_image_measures_judge_the_users_images(study: Study, measure: Measure) -> None:
    probes = make_probes(study.pipe, 3, 0, "search")
    candidate = of(2, 3, 1)
    dense = user_images(study.pipe, probes)
    plans = [study.library.plan(stage, levels) for stage, levels in enumerate(candidate.levels)]
    with routed(study.pipe.transformer, study.stages, opened(study.pipe, plans)):
        pruned = user_images(study.pipe, probes)
    fitness = fitness_of(study, measure=measure)
    if isinstance(measure, ImagePSNR):
        errors = ((pruned - dense).double() ** 2).mean((1, 2, 3))
        expected, most = (-10 * errors.log10()).mean(), EXACT_DB
    else:
        expected, most = ssim(dense, pruned).mean(), 1.0
    assert fitness(candidate) == pytest.approx(float(expected), rel=1e-6)
    assert fitness(DENSE) == pytest.approx(most)
    assert fitness(candidate) < most - 1e-4


def test_a_score_is_the_mean_over_its_probes(study: Study) -> None:
    probes = make_probes(study.pipe, 3, 0, "search")
    candidate = of(1, 2, 3)
    chunks = [
        Fitness(study.pipe, study.library, study.stages, part, CALL, LatentSNR())(candidate)
        for part in (probes[:2], probes[2:])
    ]
    assert fitness_of(study)(candidate) == pytest.approx((2 * chunks[0] + chunks[1]) / 3, rel=1e-9)


def test_other_probes_or_settings_are_other_scores(study: Study) -> None:
    candidate = of(1, 2, 3)
    probes, others = (make_probes(study.pipe, 2, 0, purpose) for purpose in ("search", "held-out"))

    def score(chosen: tuple[Probe, ...], sampling: Sampling) -> float:
        return Fitness(study.pipe, study.library, study.stages, chosen, sampling, LatentSNR())(candidate)

    scores = {
        score(probes, CALL),
        score(others, CALL),
        score(probes, Sampling(CALL.steps, 5.0, 2)),
        score(probes, Sampling(9, CALL.guidance, 2)),
    }
    assert len(scores) == 4


def test_the_pipeline_is_left_as_it_was(any_study: Study) -> None:
    before, kind = snapshot(any_study.pipe.transformer), type(any_study.pipe)
    fitness = fitness_of(any_study)
    for candidate in schedules(any_study, 4):
        fitness(candidate)
    assert_same(before, snapshot(any_study.pipe.transformer))
    assert type(any_study.pipe) is kind
    failing = fitness_of(any_study, memory=0)
    handle = any_study.pipe.transformer.transformer_blocks[0].norm1.register_forward_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        failing(of(1, 1, 2))
    handle.remove()
    assert_same(before, snapshot(any_study.pipe.transformer))
    assert type(any_study.pipe) is kind


def test_the_device_is_looked_up_once(study: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    found, own = list[torch.device](), DiTPipeline._execution_device.fget

    def look(pipe: DiTPipeline) -> torch.device:
        found.append(own(pipe))
        return found[-1]

    monkeypatch.setattr(DiTPipeline, "_execution_device", property(look))
    sample(study.pipe, make_probes(study.pipe, 1, 0, "search"), CALL)
    assert len(found) > 1  # what a pipeline does by itself
    found.clear()
    fitness = fitness_of(study)
    for candidate in schedules(study, 2):
        fitness(candidate)
    assert found == [torch.device("cpu")]
