"""What is declared wrongly of a denoiser is refused, with what to say instead; and the remedies hold."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, cast

import numpy as np
import pytest
import torch
from diffusers.models.unets.unet_2d import UNet2DOutput
from tests.helpers.foreign import CASES, TIMES, Between, Case, between
from tests.helpers.tiny import assert_same, snapshot
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from diff_es.layers import Channels, Heads, Kind, Residual, Rows, declared
from diff_es.pipelines.timestep_hook import on_timestep
from diff_es.pruning.calibration import Gatherer
from diff_es.pruning.declare import declare
from diff_es.pruning.wanted import Wanted
from diff_es.routing.stage_hook import on_stage, stage_reader
from diff_es.trajectory.stages import Stages
from diff_es.trajectory.timesteps import Trajectory, placed
from diff_es.utils.errors import DiffESError

STAGES = Stages((0.5,))
HEADS, MLP, SKIP = cast(tuple[Heads, Channels, Residual], CASES["parallel"].declaration)
CONVS, PIXELS = cast(tuple[Channels, Residual], CASES["pixels"].declaration)


def refused(case: Case, message: str) -> None:
    model = case.model()
    before = snapshot(model)
    with pytest.raises(DiffESError, match=message):
        case.declared(model)
    assert_same(before, snapshot(model))
    assert declared(model) is None


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ((replace(HEADS, start=0),), "layers.0.qkv: expected a layer that runs without its first group"),
        ((replace(HEADS, start=11),), "layers.0.qkv: expected a layer that runs without its first group"),
        ((replace(HEADS, size=40),), "layers.0.qkv.weight: expected 120 rows: 3 x 4 groups of 10, found 96"),
        ((replace(HEADS, size=None),), "layers.0.qkv.weight: expected 156 rows"),
        ((replace(HEADS, start=40),), "layers.0.out: expected a range of its 64 input columns, found 32 from 40 on"),
        ((HEADS, replace(MLP, start=24)), "layers.0.mlp.weight: expected 80 rows"),
        ((HEADS, replace(MLP, start=24, size=20)), "layers.0.out: expected columns of one layer each, found some that"),
        ((HEADS, HEADS), "layers.0.out: expected columns of one layer each, found some that are declared twice"),
        ((replace(HEADS, rows=("norm", Rows("qkv", 3))),), "layers.0.norm.weight: expected 32 rows"),
        (
            (replace(SKIP, pixels=True),),
            "layers.0: expected hidden states with channels second, found layers that read",
        ),
        ((Residual(""),), "Residual: expected a block of the denoiser, found the denoiser itself"),
        ((), "declaration: expected something that can be pruned, found nothing"),
    ],
)
def test_what_is_wrong_of_joined_columns_and_tokens_is_refused(parts: Any, message: str) -> None:
    refused(replace(CASES["parallel"], declaration=parts), message)


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ((replace(CONVS, rows=("conv1", Rows("time", 2))),), "blocks.0.conv2: expected a layer that runs without its"),
        ((replace(CONVS, rows=("conv1", "norm")),), "blocks.0.conv2: expected a layer that runs without its first"),
        (
            (replace(CONVS, rows=("conv1", "norm", "time")),),
            "blocks.0.time.weight: expected 16 rows: 1 x 4 groups of 4",
        ),
        (
            (Heads("blocks.*", 8, CONVS.rows, "conv2"),),
            "blocks.0.norm: expected a whole number of norm groups for each of",
        ),
        ((replace(CONVS, counts=(("norm.num_groups", 2),)),), "blocks.0.norm.num_groups: expected 8, 2 for each group"),
        (
            (replace(PIXELS, pixels=False),),
            r"blocks.0: expected hidden states with channels last, .* side 1 of \(2, 8, 8",
        ),
    ],
)
def test_what_is_wrong_of_convolutions_and_pixels_is_refused(parts: Any, message: str) -> None:
    refused(replace(CASES["pixels"], declaration=parts), message)


def test_heads_of_two_norm_groups_are_cut_with_them() -> None:
    case = replace(CASES["pixels"], declaration=(Heads("blocks.*", 2, CONVS.rows, "conv2"),))
    (first, _) = case.declared(case.model()).layers
    assert (first.kind, first.groups, first.width) == (Kind.ATTENTION, 2, 8)
    assert first.counts == (("blocks.0.norm", "num_groups", 2), ("blocks.0.norm", "num_channels", 8))


GROUPED = between((4, 5), lambda: nn.ConvTranspose1d(4, 16, 3, groups=2), lambda: nn.Conv1d(16, 4, 1))


@pytest.mark.parametrize(
    ("case", "message"),
    [
        (GROUPED, "first: expected a transposed convolution of one group, or depthwise, found 2 groups"),
        (
            between((4, 5), lambda: nn.Conv1d(4, 16, 1), lambda: nn.Conv1d(16, 4, 1, groups=4)),
            "last: expected a convolution that mixes its channels, found 4 groups",
        ),
        (
            between(
                (4, 5), lambda: nn.Conv1d(4, 16, 1), lambda: nn.utils.parametrizations.weight_norm(nn.Conv1d(16, 4, 1))
            ),
            "last: expected a weight that is a parameter, found one that is made from others. Remove what makes it",
        ),
        (
            between((4, 5), lambda: nn.Conv1d(4, 16, 1), lambda: nn.Conv1d(16, 4, 1), lambda: nn.GroupNorm(1, 16)),
            "last: expected equal parts of the input columns, found 16 columns for 1 heads or groups",
        ),
        (
            between((5, 4), lambda: nn.Linear(4, 16), lambda: nn.Linear(16, 4), lambda: nn.LayerNorm(16)),
            "last: expected a layer that runs without its first group.* leave out what mixes groups",
        ),
        (
            between((4, 5), lambda: nn.Conv1d(4, 16, 1, bias=False), lambda: nn.Conv1d(16, 4, 1), lambda: Dead()),
            "last: expected inputs of the output projection that are not all zero, found zeros alone",
        ),
        (
            replace(CASES["root"], declaration=(Channels("", ("down",), "up"),)),
            "up: expected a layer that runs without",
        ),
        (
            replace(CASES["root"], declaration=(Channels("", ("up", "up"), "down"),)),
            "up: expected rows of one layer each, found some that are declared twice. Name each module once",
        ),
    ],
)
def test_what_cannot_be_cut_is_refused_with_the_reason(case: Case, message: str) -> None:
    refused(case, f"declaration, ({message})")


class Dead(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return 0 * x


class Chain(nn.Module):
    """Each layer's output feeds the next."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c, self.d = nn.Linear(6, 16), nn.Linear(16, 12), nn.Linear(12, 16), nn.Linear(16, 6)

    def forward(self, x: Tensor, timestep: Tensor) -> Tensor:
        found: Tensor = self.d(self.c(self.b(self.a(x).relu()).relu()).relu())
        return found


def test_of_layers_that_follow_one_another_every_other_one_is_declared() -> None:
    case = Case(Chain, (Channels("", ("a",), "b"), Channels("", ("b",), "c"), Channels("", ("c",), "d")), (5, 6))
    refused(case, "b: expected rows or columns of a weight to be cut, found both.* declare every other one")
    first, _, last = case.declaration
    assert [layer.groups for layer in replace(case, declaration=(first, last)).declared(case.model()).layers] == [
        16,
        16,
    ]


class Tail(nn.Module):
    """A layer behind the declared ones has as many rows as they have groups."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down, self.tail = nn.Linear(6, 8), nn.Linear(8, 6), nn.Linear(6, 8)

    def forward(self, x: Tensor, timestep: Tensor) -> Tensor:
        found: Tensor = self.tail(self.down(self.up(x).relu())).sum(-1)
        return found


def test_rows_that_serve_something_else_too_are_refused() -> None:
    refused(Case(Tail, (Channels("", ("up", "tail"), "down"),), (5, 6)), "declaration, down: .* the others unchanged")


class Wide(nn.Module):
    """A residual block of pixels as wide as it has channels, which says so in no known layer, or both ways."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.way, self.weight, self.linear = way, nn.Parameter(torch.randn(6, 6) / 3), nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        if self.way == "last":
            return x + self.linear(x)
        if self.way == "moved":  # channels come second, and are moved to where a linear layer wants them
            return x + self.linear(x.movedim(1, -1)).movedim(-1, 1)
        if self.way == "tokens":
            return x + self.linear(x.flatten(2).transpose(1, 2)).transpose(1, 2).view_as(x)
        if self.way == "both":
            return x + self.linear(x) + self.linear(x.movedim(1, -1)).movedim(-1, 1)
        return x + torch.einsum("nchw,dc->ndhw", x, self.weight)


class Ways(nn.Module):
    def __init__(self, way: str) -> None:
        super().__init__()
        self.block = Wide(way)

    def forward(self, x: Tensor, timestep: Tensor) -> Tensor:
        found: Tensor = self.block(x)
        return found


@pytest.mark.parametrize(("way", "pixels"), [("last", False), ("moved", True), ("tokens", True)])
def test_the_layers_of_a_block_tell_where_its_channels_are(way: str, pixels: bool) -> None:
    case = Case(lambda: Ways(way), (Residual("block"),), (6, 6, 6))
    (block,) = case.declared(case.model()).blocks
    assert (block.width, block.pixels) == (6, pixels)
    refused(replace(case, declaration=(Residual("block", pixels=not pixels),)), "block: expected hidden states with")


@pytest.mark.parametrize("way", ["none", "both"])
def test_where_nothing_tells_it_the_user_does(way: str) -> None:
    case = Case(lambda: Ways(way), (Residual("block"),), (6, 6, 6))
    refused(case, "block: expected to know which side of its hidden states .* Say Residual.*pixels=True")
    (block,) = replace(case, declaration=(Residual("block", pixels=True),)).declared(case.model()).blocks
    assert block.pixels


@pytest.mark.parametrize(
    ("declaration", "message"),
    [
        (("up",), "declaration: expected Heads, Channels and Residual, found a str"),
        ((Channels("", cast(Any, "up"), "down"),), r"down: expected names or Rows in a tuple, found up. Such as rows="),
        ((Channels("", cast(Any, (1,)), "down"),), "down: expected names or Rows in a tuple"),
        ((Channels("", (Rows("up", 0),), "down"),), "down: expected heads, chunks, widths and sizes as whole numbers"),
        (
            (Channels("", (Rows("up", 1, 0),), "down"),),
            "down: expected heads, chunks, widths and sizes as whole numbers",
        ),
        (
            (Heads("", cast(Any, 2.0), ("up",), "down"),),
            "down: expected heads, chunks, widths and sizes as whole numbers",
        ),
        ((Channels("", ("up",), "down", start=cast(Any, "1")),), "down: expected heads, chunks, widths"),
        ((Channels("", ("up",), ""),), "expected nn.Linear or a convolution, found a AtRoot"),
        ((Channels("", ("",), "down"),), "declaration: expected rows of modules below the denoiser"),
    ],
)
def test_what_is_no_declaration_is_refused(declaration: Any, message: str) -> None:
    refused(replace(CASES["root"], declaration=declaration), message)


def test_a_call_that_does_not_run_is_refused() -> None:
    model, parts = CASES["root"].model(), CASES["root"].declaration
    calls: list[Any] = [lambda: model(torch.randn(2, 5, 7), torch.ones(2)), torch.zeros(1)]
    for call in calls:
        with pytest.raises(
            DiffESError, match=r"declaration, call: expected a call that runs, found .*Error: .* lambda:"
        ):
            declare(model, parts, call, timestep="t")
    with pytest.raises(DiffESError, match=r"down: expected to run in a call of the denoiser"):
        declare(model, parts, lambda: None)
    with pytest.raises(DiffESError, match="expected a denoiser to declare, found a str"):
        declare(cast(Any, "unet"), parts, lambda: None)


class ByName(Ways):
    def forward(self, x: Tensor, timestep: Tensor) -> Tensor:
        found: Tensor = self.block(x=x)
        return found


def test_a_block_that_is_called_by_name_is_refused_with_what_to_do() -> None:
    case = Case(lambda: ByName("moved"), (Residual("block"),), (6, 6, 6))
    refused(case, "block: expected a block that can be left out.* Call it with its hidden states first, by place")


# ---------------------------------------------------------------------------------------------------------- norms


class Normed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.norm, self.conv2 = nn.Conv2d(4, 12, 3, padding=1), nn.BatchNorm2d(12), nn.Conv2d(12, 4, 1)
        for running in (self.norm.running_mean, self.norm.running_var):
            assert running is not None
            running.add_(torch.rand(12))

    def forward(self, x: Tensor, timestep: Tensor) -> Tensor:
        found: Tensor = self.conv2(self.norm(self.conv1(x)).relu())
        return found


def test_a_norm_with_statistics_is_folded_as_the_message_says() -> None:
    case = Case(Normed, (Channels("", ("conv1", "norm"), "conv2"),), (4, 5, 5))
    refused(case, r"norm: expected rows .* found a BatchNorm2d.* Fold it .*fuse_conv_bn_eval")
    folded = replace(case, declaration=(Channels("", ("conv1",), "conv2"),))
    refused(folded, r"conv2: expected a layer that runs.* norm keeps statistics of channels. Fold it .*nn.Identity")
    model: Any = case.model()
    dense = case.call(model)
    model.conv1, model.norm = fuse_conv_bn_eval(model.conv1, model.norm), nn.Identity()
    assert (case.call(model) - dense).abs().max() <= 1e-5 * dense.abs().max()
    assert [layer.groups for layer in folded.declared(model).layers] == [12]


def test_a_norm_with_nothing_before_it_becomes_a_convolution_as_the_message_says() -> None:
    case = between((4, 5), lambda: nn.Conv1d(4, 16, 1), lambda: nn.Conv1d(16, 4, 1), lambda: nn.BatchNorm1d(16))
    model = case.model()
    refused(case, "deep: .* put its scale and shift into a convolution of kernel size 1 with a group for each channel")
    norm: Any = model.deep
    point = nn.Conv1d(16, 16, 1, groups=16)
    scale = norm.weight / (norm.running_var + norm.eps).sqrt()
    point.weight = nn.Parameter(scale[:, None, None])
    point.bias = nn.Parameter(norm.bias - norm.running_mean * scale)
    dense, model.deep = case.call(model), point.eval()
    assert (case.call(model) - dense).abs().max() <= 1e-5 * dense.abs().max()
    said = replace(case, declaration=(Channels("", ("first", "deep"), "last", (("deep.groups", 1),)),))
    assert said.declared(model).layers[0].groups == 16


# ----------------------------------------------------------------------------------------------- modes, times, stages


def dropping() -> nn.Module:
    return Between(nn.Linear(4, 16), nn.Linear(16, 4), nn.Dropout(0.5))


@pytest.mark.parametrize("inside", [False, True])
def test_training_mode_is_refused_before_anything_runs(inside: bool) -> None:
    case = Case(dropping, (Channels("", ("first",), "last"),), (5, 4))
    model = case.model()
    anatomy = case.declared(model)
    parts = dict(model.named_modules())
    parts["deep" if inside else ""].train()
    where = "denoiser, deep" if inside else "denoiser"
    with pytest.raises(DiffESError, match=f"^{where}: expected evaluation mode, found training mode.* Call its eval"):
        case.declared(model)
    with pytest.raises(DiffESError, match="expected evaluation mode"), Gatherer(model, STAGES, Wanted(anatomy.layers)):
        pass
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    case.declared(model.eval())
    parts["first"].train()  # a linear layer does the same in either mode
    case.declared(model)


def test_a_forward_without_a_timestep_is_told_to_name_one() -> None:
    case = CASES["root"]
    model = case.model()
    with pytest.raises(
        DiffESError,
        match=r'AtRoot.forward: expected an argument `timestep`.*, found x, t. .* declare\(\.\.\., timestep="t"\)',
    ):
        on_stage(model, Stages((0.5,)), print)
    with pytest.raises(DiffESError, match="expected an argument `time`"):
        replace(case, timestep="time", declaration=case.declaration).declared(model)
    heard = list[float]()
    case.declared(model)
    handle = on_timestep(model, heard.append)
    case.call(model, 0.25)
    handle.remove()
    assert heard == [0.25]


def test_a_call_without_a_time_is_refused_by_name() -> None:
    case = CASES["pixels"]
    model = case.model()
    case.declared(model)
    handle = on_stage(model, Stages((0.5,)), print)
    for wrong in (None, "0.5", torch.zeros(2, dtype=torch.bool), torch.zeros(0)):
        with pytest.raises(DiffESError, match=r"Pixels.forward, noise_level: expected a number, or a tensor of them"):
            model(torch.randn(2, 8, 8, 8), noise_level=wrong)
    handle.remove()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_a_time_at_a_boundary_keeps_to_its_side_in_every_precision(dtype: torch.dtype) -> None:
    """0.6 and 0.1 are none of them exactly."""
    case, times, heard = CASES["root"], [0.9, 0.6, 0.3, 0.1], list[int]()
    model = case.model()
    case.declared(model)
    handle = on_stage(model, Stages((0.6, 0.1)), heard.append)
    for t in times:
        model.double()(torch.randn(1, 5, 6).double(), torch.tensor([t], dtype=dtype))
    handle.remove()
    assert heard == [0, 1, 1, 2]


@pytest.mark.parametrize("made", [float, np.float64, partial(torch.tensor, dtype=torch.float64), torch.tensor])
def test_a_time_that_a_loop_hands_on_as_it_is_belongs_to_the_stage_of_its_trajectory(made: Any) -> None:
    """Whose boundaries are of float32, in which 0.7 is a little less."""
    times, case = (1.0, 0.9, 0.7, 0.6, 0.4, 0.3), CASES["root"]
    case.declared(model := case.model())
    stage_of = stage_reader(model, Trajectory(times, 0.0, False, (0.0, 1.0)).stages(3))
    assert [stage_of((torch.zeros(1, 5, 6), made(t)), {}) for t in times] == [0, 0, 1, 1, 2, 2]


def test_times_that_float32_cannot_hold_are_placed() -> None:
    path = Trajectory((0.9, 0.8, 0.7, 0.6, 0.3, 0.1), 0.0, False, (0.0, 1.0))
    stages = path.stages(3)
    chosen = placed(path, stages, (2, 5, 3))
    assert stages.steps(chosen) == (2, 5, 3)
    assert all(t == float(torch.tensor(t, dtype=torch.float32)) for t in (*chosen, *path.timesteps))
    with pytest.raises(DiffESError, match=r"strictly descending ones.* as far apart as float32 can tell"):
        Trajectory((0.6, 0.6 - 1e-12), 0.0, False, (0.0, 1.0))


def test_boundaries_that_do_not_descend_say_in_what_they_are_given() -> None:
    with pytest.raises(DiffESError, match="from noise to image, in what the denoiser receives as its timestep"):
        Stages((0.3, 0.6))
    with pytest.raises(DiffESError, match="time rises to the image, wrap it in a module that takes the time left"):
        Stages.split((0.0, 0.5, 1.0), 2)


class TimeLeft(nn.Module):
    """As the message says: a denoiser whose own time rises, called with the time left."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor, timestep: Tensor) -> Any:
        return self.inner(x, 1 - timestep)


def test_stages_in_other_units_than_the_denoisers_are_refused_where_they_are_noticed() -> None:
    case = CASES["root"]
    model = case.model()
    anatomy = case.declared(model)
    with Gatherer(model, Stages((500.0,)), Wanted(anatomy.layers)) as gatherer:
        case.run(model)
    with pytest.raises(
        DiffESError,
        match=r"calibration, down: .* found none in stage 0: all timesteps were from 0.9 to 0.2, and .* at 500. Cut",
    ):
        gatherer.statistics()
    wrapped = TimeLeft(model)
    parts = (Channels("inner", ("up",), "down"),)
    found = declare(wrapped.eval(), parts, lambda: wrapped(torch.randn(2, 5, 6), torch.ones(2)))
    with Gatherer(wrapped, Stages.split([1 - t for t in reversed(TIMES)], 2), Wanted(found.layers)) as gatherer:
        for t in TIMES:
            wrapped(torch.randn(2, 5, 6), torch.full((2,), 1 - t))
    assert gatherer.statistics().stages[0].keys() == {"inner.down"}


class Answer:
    """Not even registered with PyTorch's trees."""


@dataclass
class Sampled(Answer):
    sample: Tensor


WRAPPED: dict[str, Callable[[Tensor], Any]] = {
    "tensor": lambda x: x,
    "tuple": lambda x: (x, x.sum()),
    "list": lambda x: [x],
    "dictionary": lambda x: {"sample": x},
    "dataclass": Sampled,
    "diffusers": lambda x: UNet2DOutput(sample=x),
}


class Given(nn.Module):
    """Gives what it is given, wrapped."""

    def __init__(self, wrap: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.wrap = wrap

    def forward(self, x: Tensor, timestep: float) -> Any:
        return self.wrap(x)


@pytest.mark.parametrize("name", WRAPPED)
def test_the_change_from_step_to_step_is_that_of_all_samples(name: str) -> None:
    before, after = torch.randn(2, 3, 5, generator=torch.Generator().manual_seed(0))
    model = Given(WRAPPED[name]).eval()
    with Gatherer(model, Stages(()), Wanted()) as gatherer:
        gatherer.begin()
        model(before, 1.0)
        model(after, 0.5)
    (change,) = gatherer.statistics().change
    assert change == pytest.approx(float((after - before).norm() / before.norm()), rel=1e-6)


def test_an_output_without_a_tensor_is_refused_by_name() -> None:
    model = Given(lambda x: Answer()).eval()
    with (
        pytest.raises(DiffESError, match=r"denoiser: expected to return a tensor, found Answer. Let its forward"),
        Gatherer(model, Stages(()), Wanted()),
    ):
        model(torch.zeros(1), 1.0)
