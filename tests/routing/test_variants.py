"""Routing hangs on the denoiser: other pipelines that share it, and offloading."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.hooks import ModelHook, add_hook_to_module
from diffusers import (
    ControlNetModel,
    StableDiffusionControlNetPipeline,
    StableDiffusionImg2ImgPipeline,
    StableDiffusionInpaintPipeline,
    StableDiffusionXLControlNetPipeline,
    StableDiffusionXLImg2ImgPipeline,
    StableDiffusionXLInpaintPipeline,
)
from tests.helpers.in_use import made_of, result_of, sampling_of, stages_of
from tests.helpers.pipelines import randomise
from tests.helpers.tiny import images, settings, tiny
from tests.helpers.tiny import stages_of as tiny_stages
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from diff_es import DiffESError, Streamed, compress
from diff_es.layers import DENSE, Cut, Plan, discover
from diff_es.layers.offload import group_of, leads_others
from diff_es.pipelines.probes import make_probes
from diff_es.pipelines.sampling import denoiser_of, sample
from diff_es.routing.placements import Placement, Resident
from diff_es.routing.routing import routed
from diff_es.trajectory.stages import Stages

CPU = torch.device("cpu")


def some_plans(pipe: Any) -> list[Plan]:
    """Three stages: all layers thinner, none, and thinner again."""
    layers = discover(denoiser_of(pipe)).layers
    cuts = [{part.name: Cut(torch.arange(n, part.groups)) for part in layers if part.groups > n} for n in (1, 2)]
    return [Plan(cuts[0]), DENSE, Plan(cuts[1])]


def skipping(pipe: Any) -> list[Plan]:
    """The same with a skipped block in the last stage."""
    *plans, last = some_plans(pipe)
    block = discover(denoiser_of(pipe)).blocks[1]
    blank = block.blank()
    assert blank is not None
    bypass = blank.map(lambda tensor: torch.full_like(tensor, 0.01))
    cuts = {name: cut for name, cut in last.cuts.items() if not name.startswith(f"{block.name}.")}
    return [*plans, Plan(cuts, {block.name: bypass})]


def under(pipe: Any, stages: Stages, plans: list[Plan], placement: Placement | None = None) -> Any:
    denoiser = denoiser_of(pipe)
    return routed(denoiser, stages, partial((placement or Resident()).open, denoiser, discover(denoiser), plans))


def variants(name: str) -> dict[str, Callable[[Any], Tensor]]:
    """Calls of other pipelines with the parts of a text-to-image pipeline."""
    xl = name == "SDXL"
    start = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(7))
    mask = torch.zeros(1, 1, 16, 16)
    mask[..., 8:] = 1

    def call(pipe: Any, **given: Any) -> Tensor:
        pipe.set_progress_bar_config(disable=True)
        generator = torch.Generator().manual_seed(1)
        asked = {"prompt": "a fox", "num_inference_steps": 4, "generator": generator, "output_type": "pt"}
        return pipe(**asked, **given).images

    def image(pipe: Any) -> Tensor:
        kind = StableDiffusionXLImg2ImgPipeline if xl else StableDiffusionImg2ImgPipeline
        return call(kind.from_pipe(pipe), image=start, strength=0.7)

    def inpaint(pipe: Any) -> Tensor:
        kind = StableDiffusionXLInpaintPipeline if xl else StableDiffusionInpaintPipeline
        return call(kind.from_pipe(pipe), image=start, mask_image=mask, height=16, width=16, strength=0.99)

    def control(pipe: Any) -> Tensor:
        controlnet = ControlNetModel.from_unet(pipe.unet, conditioning_embedding_out_channels=(4, 4)).eval()
        randomise(controlnet, torch.Generator().manual_seed(2))
        if xl:
            other = StableDiffusionXLControlNetPipeline.from_pipe(pipe, controlnet=controlnet)
        else:
            other = StableDiffusionControlNetPipeline.from_pipe(pipe, controlnet=controlnet)
        return call(other, image=start)

    return {"image to image": image, "inpainting": inpaint, "ControlNet": control}


@pytest.mark.parametrize("name", ["SD", "SDXL"])
@pytest.mark.parametrize("kind", ["image to image", "inpainting", "ControlNet"])
def test_pipelines_that_share_the_denoiser_run_routed(name: str, kind: str) -> None:
    pipe, call = made_of(name), variants(name)[kind]
    stages, plain = stages_of(name), call(pipe)
    with under(pipe, stages, [DENSE] * 3):
        assert torch.equal(call(pipe), plain)
    with under(pipe, stages, some_plans(pipe)):
        pruned = call(pipe)
    assert not torch.equal(pruned, plain)
    assert torch.equal(call(pipe), plain)


def test_chosen_steps_are_refused_where_a_pipeline_does_not_begin_with_noise() -> None:
    pipe = made_of("SD")
    compressed, other = result_of("SD", pipe), StableDiffusionImg2ImgPipeline.from_pipe(pipe)
    with compressed.routed(other):
        pass
    chosen = replace(compressed, timesteps=(801.0, 401.0))
    message = r"expected one that takes the chosen steps from noise on, found .*Img2Img"
    with pytest.raises(DiffESError, match=message), chosen.routed(other):
        pass


def model_offload(pipe: Any) -> None:
    pipe.enable_model_cpu_offload(device="cpu")


def block_offload(pipe: Any) -> None:
    where = {"onload_device": CPU, "offload_device": CPU}
    denoiser_of(pipe).enable_group_offload(**where, offload_type="block_level", num_blocks_per_group=1)


def leaf_offload(pipe: Any) -> None:
    pipe.enable_group_offload(onload_device=CPU, offload_device=CPU, offload_type="leaf_level")


@cache
def expected(name: str, placement: Resident | Streamed) -> tuple[Tensor, Tensor]:
    """What a pipeline that is not offloaded gives, dense and pruned."""
    plain = made_of(name)
    dense = drawn(name, plain)
    with under(plain, stages_of(name), some_plans(plain), placement):
        return dense, drawn(name, plain)


def drawn(name: str, pipe: Any) -> Tensor:
    return sample(pipe, make_probes(pipe, 2, 0, "test"), sampling_of(name))


@pytest.mark.parametrize(
    ("name", "offload", "placement", "inside"),  # every two of them
    [
        ("SD", model_offload, Resident(), False),
        ("SD", block_offload, Streamed(), True),
        ("SD", leaf_offload, Streamed(), False),
        ("SD", leaf_offload, Resident(), True),
        ("FLUX", model_offload, Streamed(), True),
        ("FLUX", block_offload, Resident(), False),
        ("FLUX", leaf_offload, Streamed(), True),
        ("FLUX", leaf_offload, Resident(), False),
    ],
)
def test_offloading_changes_no_result(
    name: str, offload: Callable[[Any], None], placement: Resident | Streamed, inside: bool
) -> None:
    """On a machine without an accelerator the hooks run, from the CPU to the CPU."""
    pipe, stages, (dense, pruned) = made_of(name), stages_of(name), expected(name, placement)
    assert not torch.equal(pruned, dense)
    if not inside:
        offload(pipe)
    with under(pipe, stages, some_plans(pipe), placement):
        if inside:
            offload(pipe)
        assert torch.equal(drawn(name, pipe), pruned)
    assert torch.equal(drawn(name, pipe), dense)


def test_parts_in_another_precision_keep_it_when_a_model_is_offloaded() -> None:
    """Wan's tables stay in float32 in a bfloat16 model."""
    pipe, stages = made_of("Wan"), stages_of("Wan")
    denoiser = denoiser_of(pipe)
    denoiser.to(torch.bfloat16)
    table = next(name for name, _ in denoiser.named_parameters() if name.endswith("scale_shift_table"))
    parameter = denoiser.get_parameter(table)
    parameter.data = parameter.data.float()
    before = {name: parameter.dtype for name, parameter in denoiser.named_parameters()}
    model_offload(pipe)
    with under(pipe, stages, some_plans(pipe)):
        pass
    assert {name: parameter.dtype for name, parameter in denoiser.named_parameters()} == before


def test_a_skipped_block_that_brings_in_others_is_refused() -> None:
    pipe, stages = made_of("SD3"), stages_of("SD3")
    denoiser = denoiser_of(pipe)
    where = {"onload_device": CPU, "offload_device": CPU, "offload_type": "block_level"}
    denoiser.enable_group_offload(**where, num_blocks_per_group=2)
    leader = next(block for block in discover(denoiser).blocks if leads_others(denoiser.get_submodule(block.name)))
    message = rf"{leader.name}: expected a block that may be skipped, .*num_blocks_per_group=1"
    plans = [DENSE, DENSE, Plan(bypasses={leader.name: leader.blank()})]
    with pytest.raises(DiffESError, match=message), under(pipe, stages, plans):
        pass
    with under(pipe, stages, some_plans(pipe)):
        pass


@pytest.mark.parametrize(
    "kind", [{"offload_type": "leaf_level"}, {"offload_type": "block_level", "num_blocks_per_group": 1}]
)
def test_groups_that_wait_in_a_folder_are_refused(kind: dict[str, Any], tmp_path: Path) -> None:
    pipe, stages = made_of("SD"), stages_of("SD")
    denoiser, plans = denoiser_of(pipe), some_plans(pipe)
    where = {"onload_device": CPU, "offload_device": CPU, "offload_to_disk_path": str(tmp_path)}
    denoiser.enable_group_offload(**where, **kind)
    message = r"denoiser: expected .*, found group offloading to a folder.*Enable it without offload_to_disk_path"
    with pytest.raises(DiffESError, match=message), under(pipe, stages, plans):
        pass
    with pytest.raises(DiffESError, match=message):
        compress(pipe, settings=settings())


@pytest.mark.parametrize("offload", [block_offload, leaf_offload])
@pytest.mark.parametrize("name", ["SD", "FLUX"])
def test_groups_move_every_parameter_of_every_stage(name: str, offload: Callable[[Any], None]) -> None:
    pipe, stages = made_of(name), stages_of(name)
    denoiser = denoiser_of(pipe)
    offload(pipe)
    groups = [group for group in map(group_of, denoiser.modules()) if group is not None]

    def moved() -> set[nn.Parameter]:
        held = {parameter for group in groups for module in group.modules for parameter in module.parameters()}
        return held | {parameter for group in groups for parameter in group.parameters}

    before = moved()
    assert before == set(denoiser.parameters())
    with under(pipe, stages, some_plans(pipe)) as routing:
        for stage in (0, 1, 2, 0):
            routing.store.to(stage)
            assert moved() == set(denoiser.parameters())
            assert (moved() == before) == (stage == 1)
    assert moved() == before


class Elsewhere(ModelHook):
    """Moves a model in before its forward and out again later, as ``enable_model_cpu_offload`` does with an
    accelerator; here "elsewhere" is double precision, which cannot be mixed with single either."""

    def pre_forward(self, module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        if next(module.parameters()).dtype != torch.float64:  # as that hook asks, to move nothing twice
            module.to(torch.float64)
        given = tree_map_only(Tensor, lambda t: t.double() if t.is_floating_point() else t, (args, kwargs))
        return given

    def post_forward(self, module: nn.Module, output: Any) -> Any:
        return tree_map_only(Tensor, lambda t: t.float(), output)


def test_weights_of_stages_move_along_with_an_offloaded_model() -> None:
    pipe = tiny()
    stages, dense = tiny_stages(pipe, 3), images(pipe)
    with under(pipe, stages, skipping(pipe)):
        pruned = images(pipe)
    add_hook_to_module(pipe.transformer, Elsewhere())
    for _ in range(2):
        with under(pipe, stages, skipping(pipe)):
            for _ in range(2):
                assert torch.allclose(images(pipe), pruned, atol=1e-5)
                pipe.transformer.to(torch.float32)
        assert {parameter.dtype for parameter in pipe.transformer.parameters()} == {torch.float32}
        assert torch.allclose(images(pipe), dense, atol=1e-5)
        pipe.transformer.to(torch.float32)
    assert not torch.allclose(pruned, dense, atol=1e-3)
