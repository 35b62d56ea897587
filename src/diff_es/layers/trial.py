"""Whether slim layers compute what the dense ones do in the groups that stay, tried on one call of the denoiser."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from ..errors import DiffESError
from .contract import Anatomy, Cut, Layer, Plan, Weights
from .realise import output_of, realise
from .switch import Switch

_FAILURES = (RuntimeError, ValueError, AssertionError, IndexError, TypeError)  # of a forward with other shapes
_OTHERS = "other values than the dense layer's"
_REMEDY = (
    "Declare all rows that feed these columns, how they are laid out (chunks, heads in turn), and in counts every "
    "integer that the forward reads; leave out what mixes groups before the output, such as a norm across them."
)


def try_layers(denoiser: nn.Module, anatomy: Anatomy, call: Callable[[], object]) -> None:
    """Run every layer without its first group.

    Raises:
        DiffESError: a layer does not run, or gives its output projection other inputs than the dense network would.
    """
    with _inputs(denoiser, anatomy.layers, silence=False) as seen, torch.no_grad():
        repeated(denoiser, call)
    for layer in anatomy.layers:
        if layer.name not in seen:
            found, where = "that it does not", f"declaration, {layer.output}"
            raise DiffESError(where, expected="to run in a call of the denoiser", found=found, remedy="Leave it out.")
    try:
        culprit, reason = _first_wrong(denoiser, anatomy, anatomy.layers, call), _OTHERS
    except _FAILURES:
        culprit, reason = _first_failing(denoiser, anatomy, call)
    if culprit is not None:
        expected = "a layer that runs without its first group, the others unchanged"
        raise DiffESError(f"declaration, {culprit.name}", expected=expected, found=reason, remedy=_REMEDY)


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
            remedy = "Leave this block out of the declaration, or declare what it returns."
            expected, where = "a block that can be left out", f"declaration, {block.name}"
            raise DiffESError(where, expected=expected, found=_short(error), remedy=remedy) from error


def _first_failing(denoiser: nn.Module, anatomy: Anatomy, call: Callable[[], object]) -> tuple[Layer | None, str]:
    """The first layer that does not run on its own, and what it says."""
    for layer in anatomy.layers:
        try:
            if _first_wrong(denoiser, anatomy, (layer,), call) is not None:
                return layer, _OTHERS
        except _FAILURES as error:
            return layer, _short(error)
    return None, ""


def _first_wrong(
    denoiser: nn.Module, anatomy: Anatomy, layers: Iterable[Layer], call: Callable[[], object]
) -> Layer | None:
    """The first layer, in the order of the forward, whose output projection receives other values."""
    chosen = {layer.name: layer for layer in layers}
    plan = Plan({name: Cut(torch.arange(1, layer.groups)) for name, layer in chosen.items()})
    with _inputs(denoiser, chosen.values(), silence=True) as dense, torch.no_grad():
        repeated(denoiser, call)
    with _switched(denoiser, anatomy, plan), _inputs(denoiser, chosen.values(), silence=False) as slim:
        repeated(denoiser, call)
    for name, expected in dense.items():
        layer = chosen[name]
        if not _same(expected, slim.get(name, []), layer, output_of(denoiser, layer)):
            return layer
    return None


def _same(dense: list[Tensor], slim: list[Tensor], layer: Layer, output: nn.Module) -> bool:
    if len(dense) != len(slim):
        return False
    for whole, part in zip(dense, slim, strict=True):
        kept = whole.narrow(_channels(output, whole), layer.start + layer.width, layer.size - layer.width)
        if kept.shape != part.shape:
            return False
        if (kept - part).abs().max() > torch.finfo(kept.dtype).eps ** 0.5 * whole.abs().max():
            return False
    return True


@contextmanager
def _inputs(denoiser: nn.Module, layers: Iterable[Layer], *, silence: bool) -> Iterator[dict[str, list[Tensor]]]:
    """What the output projections receive, in the order of the forward; with ``silence`` the first group is then set
    to zero."""
    seen = dict[str, list[Tensor]]()

    def watch(layer: Layer) -> Callable[..., tuple[Tensor, ...] | None]:
        def hook(module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
            seen.setdefault(layer.name, []).append(args[0])
            if not silence:
                return None
            silenced = args[0].clone()
            silenced.narrow(_channels(module, silenced), layer.start, layer.width).zero_()
            return (silenced, *args[1:])

        return hook

    handles = [output_of(denoiser, layer).register_forward_pre_hook(watch(layer)) for layer in layers]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def _channels(output: nn.Module, inputs: Tensor) -> int:
    """The dimension of an output projection's inputs that its columns belong to."""
    return inputs.dim() - 3 if isinstance(output, nn.Conv2d) else inputs.dim() - 1


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
    """A call that draws its input draws the same every time, and leaves no trace in the random state."""
    device = next(denoiser.parameters()).device
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(0)
        call()


def _short(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).splitlines()[0][:200]}"
