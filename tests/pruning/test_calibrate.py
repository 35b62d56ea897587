"""Laws of calibration: a stage's statistics are those of what its steps fed into the layers, and nothing is left."""

from __future__ import annotations

from typing import Any, NamedTuple

import pytest
import torch
from diffusers import DiTPipeline, DPMSolverMultistepScheduler
from tests.helpers.tiny import CALL, assert_same, images, settings, snapshot, stages_of, tiny
from torch import Tensor

from diff_es import Sampling
from diff_es.compression.study import prepare
from diff_es.layers import discover
from diff_es.pipelines.probes import make_probes
from diff_es.pipelines.sampling import sample
from diff_es.pruning.calibration import calibrate
from diff_es.pruning.moments import Moments
from diff_es.pruning.statistics import Statistics
from diff_es.pruning.wanted import Wanted
from diff_es.utils.progress import Reporter

PROBES = 4


def calibrated(pipe: DiTPipeline, stages: int, sampling: Sampling = CALL, probes: int = PROBES) -> Statistics:
    """Of all layers and blocks."""
    anatomy = discover(pipe.transformer)
    chosen = make_probes(pipe, probes, 0, "calibration")
    cut = stages_of(pipe, stages, sampling)
    return calibrate(pipe, chosen, sampling, cut, Wanted(anatomy.layers, anatomy.blocks), Reporter(quiet=True))


class Recorded(NamedTuple):
    inputs: dict[str, list[Tensor]]  # by name, one entry for each denoiser call
    outputs: list[Tensor]  # of the denoiser


def recorded(pipe: DiTPipeline, sampling: Sampling = CALL) -> Recorded:
    """The inputs of every output projection and every block's [input, residual], written down in full."""
    inputs, outputs, handles = dict[str, list[Tensor]](), list[Tensor](), []

    def keep(name: str) -> Any:
        def hook(module: Any, args: Any, kwargs: Any, output: Tensor) -> None:
            is_block = name.count(".") == 1
            hidden = args[0] if args else kwargs["hidden_states"]
            inputs.setdefault(name, []).append(torch.cat([hidden, output - hidden], -1) if is_block else hidden)

        return hook

    for i, block in enumerate(pipe.transformer.transformer_blocks):
        name = f"transformer_blocks.{i}"
        parts = {name: block, f"{name}.attn1": block.attn1.to_out[0], f"{name}.ff": block.ff.net[2]}
        handles += [part.register_forward_hook(keep(key), with_kwargs=True) for key, part in parts.items()]
    handles.append(pipe.transformer.register_forward_hook(lambda m, a, output: outputs.append(output[0])))
    sample(pipe, make_probes(pipe, PROBES, 0, "calibration"), sampling)
    for handle in handles:
        handle.remove()
    return Recorded(inputs, outputs)


def brute_force(calls: list[Tensor]) -> Moments:
    x = torch.cat([call.double().flatten(0, -2) for call in calls])
    return Moments(x.T @ x, x.sum(0), len(x))


def assert_close(found: Moments, expected: Moments) -> None:
    assert found.count == expected.count
    pairs = [(found.hessian(centred=centred), expected.hessian(centred=centred)) for centred in (True, False)]
    for one, other in [*pairs, (found.mean(), expected.mean()), (found.power(), expected.power())]:
        torch.testing.assert_close(one, other, atol=1e-4 * float(other.abs().max()), rtol=0)


@pytest.mark.parametrize(
    "changes",
    [{}, {"activation": "geglu", "sigma": True}, {"scheduler": DPMSolverMultistepScheduler}, {"dtype": torch.bfloat16}],
)
@pytest.mark.parametrize("stages", [1, 4, 6])
def test_statistics_are_those_of_the_inputs_of_a_stage(changes: dict[str, Any], stages: int) -> None:
    pipe = tiny(**changes)
    found, seen, steps = calibrated(pipe, stages), recorded(pipe), CALL.steps
    assert len(found.stages) == len(found.change) == stages
    for stage, statistics in enumerate(found.stages):
        assert statistics.keys() == seen.inputs.keys()
        own = range(stage * steps // stages, (stage + 1) * steps // stages)
        for name, calls in seen.inputs.items():
            part = [call for i, call in enumerate(calls) if i % steps in own]
            assert_close(statistics[name], brute_force(part))


def test_every_vector_of_both_halves_of_guidance_is_counted() -> None:
    pipe, tokens = tiny(), 16
    for guidance, halves in ((1.0, 1), (2.0, 2)):
        stages = calibrated(pipe, 3, Sampling(6, guidance, 2)).stages
        counts = {moments.count for stage in stages for moments in stage.values()}
        assert counts == {2 * PROBES * halves * tokens}  # 2 steps a stage


def test_change_is_the_mean_relative_change_of_the_output_within_a_trajectory() -> None:
    pipe = tiny()
    found, seen, steps = calibrated(pipe, 3).change, recorded(pipe).outputs, CALL.steps
    changes = [
        float((now - before).norm() / before.norm()) if i % steps else None
        for i, (before, now) in enumerate(zip([seen[0], *seen], seen, strict=False))
    ]
    for stage in range(3):
        steps_of_stage = range(stage * 2, stage * 2 + 2)
        own = [c for i, c in enumerate(changes) if i % steps in steps_of_stage and c is not None]
        assert found[stage] == pytest.approx(sum(own) / len(own), rel=1e-4)
    assert calibrated(pipe, 6).change[0] == 0  # the first step has none before it


def test_the_sum_over_stages_is_calibration_with_one_stage() -> None:
    pipe = tiny()
    whole = calibrated(pipe, 1).stages[0]
    for stages in (2, 5):
        shared = calibrated(pipe, stages).shared()
        assert shared.keys() == whole.keys()
        for name in whole:
            assert_close(shared[name], whole[name])


def test_several_batches_are_one() -> None:
    pipe = tiny()
    one = calibrated(pipe, 3, Sampling(6, 2.0, PROBES))
    for batch in (1, 3):
        several = calibrated(pipe, 3, Sampling(6, 2.0, batch))
        for some, all_at_once in zip(several.stages, one.stages, strict=True):
            for name in all_at_once:
                assert_close(some[name], all_at_once[name])


def test_the_same_probes_give_the_same_statistics_to_the_bit() -> None:
    first, second = calibrated(tiny(), 3), calibrated(tiny(), 3)
    assert first.change == second.change
    for one, other in zip(first.stages, second.stages, strict=True):
        assert all(torch.equal(one[name].second, other[name].second) for name in one)


@pytest.mark.parametrize("fails", [False, True])
def test_the_pipeline_is_left_as_it_was(fails: bool) -> None:
    pipe = tiny()
    dense, before, decoder = images(pipe), snapshot(pipe.transformer), snapshot(pipe.vae)
    attributes = vars(pipe).keys()
    if fails:
        handle = pipe.transformer.transformer_blocks[1].register_forward_hook(lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            calibrated(pipe, 3)
        handle.remove()
    else:
        prepare(pipe, settings())
    assert_same(before, snapshot(pipe.transformer))
    assert_same(decoder, snapshot(pipe.vae))
    assert vars(pipe).keys() == attributes
    assert torch.equal(images(pipe), dense)


@pytest.mark.parametrize(("stages", "patch", "samples"), [(3, 2, 64), (6, 4, 128)])
def test_as_many_samples_as_the_columns_of_the_layers_ask_for(stages: int, patch: int, samples: int) -> None:
    ready = prepare(tiny(patch=patch), settings(stages=stages, calibration_samples=None))
    assert ready.calibration_samples == samples
    for layer in ready.anatomy.layers:
        counts = [moments[layer.name].count for moments in ready.statistics.stages]
        assert min(counts) >= 16 * layer.size
    asked = prepare(tiny(patch=patch), settings(stages=stages, calibration_samples=3))
    assert asked.calibration_samples == 3
