"""Whether slim layers compute what the dense ones do in the groups that stay, tried on one call of the denoiser."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from ..layers.compiled import submodule
from ..layers.contract import Anatomy, Layer
from ..layers.convolutions import channel_dimension, given_to
from ..layers.declaration import wrong
from ..layers.described import FOLDED, keeps_statistics
from ..layers.plan import Cut, Plan, Weights
from ..routing.realise import output_of, realise
from ..routing.switch import Switch
from ..utils.calls import Args, Kwargs
from ..utils.errors import DiffESError

_FAILURES = (RuntimeError, ValueError, AssertionError, IndexError, TypeError)  # of a forward with other shapes
_OTHERS = "other values than the dense layer's"
_REMEDY = (
    "Declare all rows that feed these columns, how they are laid out (chunks, heads in turn), and in counts every "
    "integer that the forward reads; leave out what mixes groups before the output, such as a norm across them."
)
_WHOLE = ""  # the denoiser's own output, among the inputs of the projections


def try_call(denoiser: nn.Module, call: Callable[[], object]) -> None:
    """Call the denoiser once as it is.

    Raises:
        DiffESError: that fails.
    """
    try:
        with torch.no_grad():
            repeated(denoiser, call)
    except DiffESError:  # of a hook
        raise
    except _FAILURES as error:
        remedy = "Give a function that calls the denoiser once: lambda: denoiser(noise, timestep=t)."
        raise wrong("call", "a call that runs", _short(error), remedy) from error


def try_layers(denoiser: nn.Module, anatomy: Anatomy, call: Callable[[], object]) -> None:
    """Run every layer without its first group, and without its last.

    Raises:
        DiffESError: a layer does not run, or gives its output projection other inputs than the dense network would, or
            changes what the denoiser gives otherwise than by what its projection lacks.
    """
    with _inputs(denoiser, anatomy.layers, silent=None) as seen, torch.no_grad():
        repeated(denoiser, call)
    for layer in anatomy.layers:
        if layer.output not in seen:
            remedy = "Leave it out."
            raise wrong(layer.output, "to run in a call of the denoiser", "that it does not", remedy)
        if not any(bool(_part(denoiser, layer, whole).any()) for whole in seen[layer.output]):
            remedy = "Load its trained weights, or try it on other inputs: nothing can be told of it so."
            raise wrong(layer.name, "inputs of the output projection that are not all zero", "zeros alone", remedy)
    for gone in (0, -1):
        try:
            culprit, reason = _first_wrong(denoiser, anatomy, anatomy.layers, gone, call), _OTHERS
            if culprit is not None:
                culprit, reason = _first_failing(denoiser, anatomy, gone, call, (culprit, _OTHERS))
        except _FAILURES as error:
            together = f"that all together do not: {_short(error)}"
            culprit, reason = _first_failing(denoiser, anatomy, gone, call, (anatomy.layers[0], together))
        if culprit is not None:
            which = "first" if gone == 0 else "last"
            expected = f"a layer that runs without its {which} group, the others unchanged"
            raise wrong(culprit.name, expected, reason, _REMEDY + _folding(denoiser, culprit))


def try_blocks(denoiser: nn.Module, anatomy: Anatomy, call: Callable[[], object]) -> None:
    """Leave out every block in turn.

    Raises:
        DiffESError: the denoiser does not run without one.
    """
    for block in anatomy.blocks:
        try:
            with _switched(denoiser, anatomy, Plan(bypasses={block.name: None})):
                repeated(denoiser, call)
        except _FAILURES as error:
            remedy = (
                "Call it with its hidden states first, by place and not by name; or leave it out of the declaration, "
                "or declare what it returns."
            )
            raise wrong(block.name, "a block that can be left out", _short(error), remedy) from error


def _folding(denoiser: nn.Module, layer: Layer) -> str:
    """What to do about norms that keep statistics of the channels, where the layer may hold one."""
    parts = submodule(denoiser, layer.home).named_modules()
    norm = next((f"{layer.home}.{name}".strip(".") for name, part in parts if keeps_statistics(part)), None)
    return "" if norm is None else f" {norm} keeps statistics of channels. {FOLDED}."


def _first_failing(
    denoiser: nn.Module, anatomy: Anatomy, gone: int, call: Callable[[], object], otherwise: tuple[Layer, str]
) -> tuple[Layer, str]:
    """The first layer that does not run on its own, and what it says, or what is said otherwise."""
    for layer in anatomy.layers:
        try:
            if _first_wrong(denoiser, anatomy, (layer,), gone, call) is not None:
                return layer, _OTHERS
        except _FAILURES as error:
            return layer, _short(error)
    return otherwise


def _first_wrong(
    denoiser: nn.Module, anatomy: Anatomy, layers: Sequence[Layer], gone: int, call: Callable[[], object]
) -> Layer | None:
    """The first layer, in the order of the forward, whose output projection receives other values without one of its
    groups; the last one, where it is the denoiser that gives others."""
    groups = {layer.name: [group for group in range(layer.groups) if group != gone % layer.groups] for layer in layers}
    plan = Plan({name: Cut(torch.tensor(kept)) for name, kept in groups.items()})
    with _inputs(denoiser, layers, silent=gone) as dense, torch.no_grad():
        repeated(denoiser, call)
    with _switched(denoiser, anatomy, plan), _inputs(denoiser, layers, silent=None) as slim:
        repeated(denoiser, call)
    for output, expected in dense.items():
        sharing = [layer for layer in layers if layer.output == output]
        if sharing:
            module = output_of(denoiser, sharing[0])
            expected = [_without(module, whole, sharing, gone) for whole in expected]
        if not _same(expected, slim.get(output, [])):
            return sharing[0] if sharing else layers[-1]
    return None


def _without(output: nn.Module, whole: Tensor, layers: Sequence[Layer], gone: int) -> Tensor:
    """What an output projection is left with of its inputs, without one group of each of its layers."""
    stays = torch.ones(whole.shape[channel_dimension(output, whole)], dtype=torch.bool, device=whole.device)
    for layer in layers:
        stays[_columns(layer, gone)] = False
    return whole.movedim(channel_dimension(output, whole), -1)[..., stays].movedim(-1, channel_dimension(output, whole))


def _same(dense: list[Tensor], slim: list[Tensor]) -> bool:
    if len(dense) != len(slim):
        return False
    for kept, part in zip(dense, slim, strict=True):
        if kept.shape != part.shape:
            return False
        if not kept.is_floating_point():
            continue
        if kept.numel() and not (kept - part).abs().max() <= torch.finfo(kept.dtype).eps ** 0.5 * kept.abs().max():
            return False
    return True


def _columns(layer: Layer, gone: int) -> slice:
    first = layer.start + gone % layer.groups * layer.width
    return slice(first, first + layer.width)


def _part(denoiser: nn.Module, layer: Layer, whole: Tensor) -> Tensor:
    """A layer's own of the inputs of its output projection."""
    return whole.narrow(channel_dimension(output_of(denoiser, layer), whole), layer.start, layer.size)


@contextmanager
def _inputs(denoiser: nn.Module, layers: Iterable[Layer], *, silent: int | None) -> Iterator[dict[str, list[Tensor]]]:
    """What the output projections receive, by their names and in the order of the forward, and what the denoiser gives;
    the columns of each layer's group ``silent`` are then set to zero."""
    seen, outputs = dict[str, list[Tensor]](), dict[str, list[Layer]]()
    for layer in layers:
        outputs.setdefault(layer.output, []).append(layer)

    def watch(name: str) -> Callable[..., Any]:
        def hook(module: nn.Module, args: Args, kwargs: Kwargs) -> Any:
            given = given_to(args, kwargs)
            seen.setdefault(name, []).append(given)
            if silent is None:
                return None
            silenced = given.clone()
            for layer in outputs[name]:
                columns = _columns(layer, silent)
                silenced.narrow(channel_dimension(module, given), columns.start, layer.width).zero_()
            return (silenced, *args[1:]), {key: value for key, value in kwargs.items() if key != "input"}

        return hook

    def leave(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        seen.setdefault(_WHOLE, []).extend(leaf for leaf in tree_leaves(output) if isinstance(leaf, Tensor))

    handles = [submodule(denoiser, name).register_forward_pre_hook(watch(name), with_kwargs=True) for name in outputs]
    handles.append(denoiser.register_forward_hook(leave))
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def _switched(denoiser: nn.Module, anatomy: Anatomy, plan: Plan) -> Iterator[None]:
    switch = Switch(denoiser)
    switch.to(realise(denoiser, anatomy, plan))
    try:
        with torch.no_grad():
            yield
    finally:
        switch.to(Weights())


def repeated(denoiser: nn.Module, call: Callable[[], object]) -> None:
    """A call that draws its input draws the same every time, and leaves no trace in the random state; compiled code
    would trace the hooks."""
    device = next(denoiser.parameters()).device
    with torch.random.fork_rng([device] if device.type == "cuda" else []), torch.compiler.set_stance("force_eager"):
        torch.manual_seed(0)
        call()


def _short(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).splitlines()[0][:200]}"
