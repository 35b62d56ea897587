"""The multiply-accumulates of a denoiser call at any level, counted on a weightless twin."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import TypeAlias

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from ..layers import Anatomy, Block, Bypass, Cut, Layer, Plan, Weights, channel_dimension, common
from ..pipelines.denoiser import device_of, dtype_of, meta_twin
from ..pipelines.families import Denoiser
from ..pipelines.tracing import Trace
from ..routing.realise import owned_bytes, realise
from ..routing.switch import Switch
from ..utils.calls import Args, Kwargs
from ..utils.progress import Reporter
from .equal_costs import alike
from .granularity import Thin, Unit, bare

Call: TypeAlias = tuple[Args, Kwargs]  # the arguments that a module receives


class MacCounter:
    """Counts the MACs of one denoiser call, for any widths, without the model's weights or arithmetic; where the
    trace is real, in calls of one sample.

    Args:
        denoiser: the architecture is taken from its configuration.
        anatomy: what discovery found in it.
        trace: the shapes of the call.
        bypass: whether a skipped block leaves a linear map behind.
    """

    def __init__(self, denoiser: Denoiser, anatomy: Anatomy, trace: Trace, *, bypass: bool = True) -> None:
        self.anatomy, self._trace, self._bypass = anatomy, trace, bypass
        self._twin = denoiser if trace.real else meta_twin(denoiser)
        self._calls, self._dense = dict[str, list[Call]](), dict[str, int]()  # of a dense call, by module: what it
        # received, and its MACs; empty until they are asked for
        self._changes = dict[Hashable, int]()  # by what the price of a module's layers depends on
        self._alike = dict[str, Hashable]()  # by module
        self._sizes = dict[tuple[Unit, int], tuple[int, int]]()  # bytes of the weights of a level

    def dense(self) -> int:
        return self._of_dense("")

    def thinned(self, kept: tuple[int, ...]) -> int:
        """With so many groups left in each of ``anatomy.layers``."""
        return self._thinned(self.anatomy.layers, kept)

    def skipping(self, names: Sequence[str]) -> int:
        """With these blocks left out; where only their number is known, any do, since all blocks cost the same."""
        blocks = {block.name: block for block in self.anatomy.blocks}
        return self._count(Plan(bypasses={name: self._stand_in(blocks[name]) for name in names}))

    def _stand_in(self, block: Block) -> Bypass | None:
        return block.blank(device=device_of(self._twin), dtype=dtype_of(self._twin)) if self._bypass else None

    def option(self, unit: Unit, level: int) -> int:
        """With one unit at a level, and the others dense; only the modules that hold its layers are counted anew."""
        option = unit.options[level]
        if not isinstance(option, Thin):
            if isinstance(option.blocks, int):
                return self.skipping([block.name for block in self.anatomy.blocks[: option.blocks]])
            blocks = {block.name: block for block in self.anatomy.blocks}
            plan = Plan(bypasses={name: self._stand_in(blocks[name]) for name in option.blocks})
            return self._count(plan, common(option.blocks))
        return self._thinned(unit.layers, option.kept)

    def _thinned(self, layers: Sequence[Layer], groups: Sequence[int]) -> int:
        """With so many groups left in each of these layers, and all others dense."""
        kept = {layer.name: n for layer, n in zip(layers, groups, strict=True) if n < layer.groups}
        places = self._places([layer for layer in layers if layer.name in kept])
        return self._of_dense("") + sum(self._change(place, held, kept) for place, held in places.items())

    def _places(self, layers: Sequence[Layer]) -> dict[str, list[Layer]]:
        """Layers by the module to call for their price: no two of them hold one another."""
        homes, found = {self._called(layer.home) for layer in layers}, dict[str, list[Layer]]()
        for layer in layers:
            own = f"{self._called(layer.home)}."
            place = min((home for home in homes if not home or own.startswith(f"{home}.")), key=len)
            found.setdefault(place, []).append(layer)
        return found

    def _change(self, place: str, layers: Sequence[Layer], kept: Mapping[str, int]) -> int:
        """What a call costs more than a dense one, with so many groups left in these layers of a module; of modules
        that are alike one is counted."""
        own = tuple((layer.name.removeprefix(place), layer.kind, layer.start, kept[layer.name]) for layer in layers)
        key = self._likeness(place), own
        if key not in self._changes:
            plan = Plan({layer.name: Cut(torch.arange(kept[layer.name])) for layer in layers})
            self._changes[key] = self._run(plan, place) - self._of_dense(place)
        return self._changes[key]

    def _likeness(self, place: str) -> Hashable:
        """The same for modules of the same parts, weights and inputs, outside and inside."""
        if place not in self._alike:
            module, shapes = self._twin.get_submodule(place), list[Hashable]()
            for name, part in module.named_modules(prefix=place):
                received = tree_leaves(self._calls.get(name, ()))
                shapes.append(tuple(x.shape for x in received if isinstance(x, Tensor)))
                shapes += [weight.shape for weight in part.parameters(recurse=False)]
            self._alike[place] = repr(module), tuple(shapes)
        return self._alike[place]

    def weight_bytes(self, unit: Unit, level: int) -> int:
        """Bytes of all weights that run with the one unit of a denoiser at a level."""
        option, dense = unit.options[level], int(sum(parameter.nbytes for parameter in self._twin.parameters()))
        if not isinstance(option, Thin):
            count = option.blocks if isinstance(option.blocks, int) else len(option.blocks)
            stand_ins = [self._stand_in(block) for block in self.anatomy.blocks]
            sizes = [sum(t.nbytes for t in one.tensors().values()) for one in stand_ins if one is not None]
            return dense + count * (max(sizes, default=0) - self._least_block())
        slim = self._slim(unit, level)
        kept = [tensor for name, tensor in self._twin.named_parameters() if name not in slim]
        return int(sum(tensor.nbytes for tensor in [*kept, *slim.values()]))

    def slim_bytes(self, unit: Unit, level: int) -> tuple[int, int]:
        """Bytes of the weights that a level which thins puts in the place of a unit's own, and those of them that are
        copied where output projections are re-solved: not the whole of a projection, which runs as it is held. Of
        other levels 0."""
        if not isinstance(unit.options[level], Thin):
            return 0, 0
        if (unit, level) not in self._sizes:
            sizes = {name: tensor.nbytes for name, tensor in self._slim(unit, level).items()}
            whole = (f"{layers[0].output}.weight" for layers in self.anatomy.sharing() if len(layers) == 1)
            total = sum(sizes.values())
            self._sizes[unit, level] = total, total - sum(sizes.get(name, 0) for name in whole)
        return self._sizes[unit, level]

    def _slim(self, unit: Unit, level: int) -> Mapping[str, Tensor]:
        """The weights that a level puts in the place of a unit's own."""
        return realise(self._twin, self.anatomy, bare(self.anatomy, [unit], level)).tensors

    def _least_block(self) -> int:
        """Bytes of the prunable layers of a block, of the smallest; the rest of a skipped block stays in place."""
        sizes = list[int]()
        for block in self.anatomy.blocks:
            layers = [layer for layer in self.anatomy.layers if layer.name.startswith(f"{block.name}.")]
            sizes.append(owned_bytes(self._twin, layers))
        return min(sizes)

    def table(self, units: Sequence[Unit], reporter: Reporter) -> tuple[tuple[int, ...], ...]:
        """MACs of a call by ``[unit][level]``, with all else dense."""
        table = list[tuple[int, ...]]()
        with reporter.task("count MACs", sum(len(unit.options) for unit in units)) as task:
            for unit in units:
                row = list[int]()
                for level in range(len(unit.options)):
                    row.append(self.option(unit, level))
                    task.advance()
                table.append(tuple(row))
        return tuple(table)

    def vectors(self, layer: Layer) -> int:
        """How many vectors the output projection of a layer receives in a call of one sample; 0 where it never runs."""
        self._record()
        return sum(
            next(x.numel() // x.shape[channel_dimension(self._twin.get_submodule(layer.output), x)] for x in tensors)
            for call in self._calls.get(layer.output, ())
            if (tensors := [leaf for leaf in tree_leaves(call) if isinstance(leaf, Tensor)])
        )

    def alike(self, units: Sequence[Unit]) -> tuple[int, ...]:
        """For each unit the first one that costs the same."""
        return alike(self._twin, self._trace, units)

    def _count(self, plan: Plan, place: str = "") -> int:
        """MACs of a call under a plan that changes nothing outside of the module ``place``."""
        place = self._called(place)
        if not place:
            return self._run(plan, "")
        return self._of_dense("") - self._of_dense(place) + self._run(plan, place)

    def _called(self, place: str) -> str:
        """The smallest module around ``place`` that is called: a list of modules has no forward."""
        if place:
            self._record()
            while place and place not in self._calls:
                place = place.rpartition(".")[0]
        return place

    def _of_dense(self, place: str) -> int:
        """MACs of a module in a dense call."""
        self._record()
        return self._dense[place]

    def _run(self, plan: Plan, place: str) -> int:
        switch, module = Switch(self._twin), self._twin.get_submodule(place)
        calls = self._calls[place] if place else [(self._trace.args, self._trace.kwargs)]
        switch.to(realise(self._twin, self.anatomy, plan))
        try:
            with torch.no_grad(), self._countable(), FlopCounterMode(display=False) as counter:
                for args, kwargs in calls:
                    module(*args, **kwargs)
        finally:
            switch.to(Weights())
        return int(counter.get_total_flops()) // 2

    @contextmanager
    def _countable(self) -> Iterator[None]:
        """With attention in plain products: PyTorch's counter does not know what a CPU runs in their place."""
        if not self._trace.real:
            yield
            return
        fast = torch.backends.mha.get_fastpath_enabled()
        torch.backends.mha.set_fastpath_enabled(False)
        try:
            with sdpa_kernel(SDPBackend.MATH), torch.compiler.set_stance("force_eager"):
                yield
        finally:
            torch.backends.mha.set_fastpath_enabled(fast)

    def _record(self) -> None:
        """One dense call, of which what every module receives and computes is noted."""
        if self._dense:
            return
        begun, handles, counter = dict[str, int](), [], FlopCounterMode(display=False)

        def enter(name: str, module: nn.Module, args: Args, kwargs: Kwargs) -> None:
            self._calls.setdefault(name, []).append((args, kwargs))
            begun[name] = counter.get_total_flops()

        def leave(name: str, module: nn.Module, args: Args, output: object) -> None:
            spent = counter.get_total_flops() - begun[name]
            self._dense[name] = self._dense.get(name, 0) + spent // 2

        for name, module in self._twin.named_modules():
            handles.append(module.register_forward_pre_hook(partial(enter, name), with_kwargs=True))
            handles.append(module.register_forward_hook(partial(leave, name)))
        try:
            with torch.no_grad(), self._countable(), counter:
                self._twin(*self._trace.args, **self._trace.kwargs)
        finally:
            for handle in handles:
                handle.remove()
