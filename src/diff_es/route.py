"""Weight routing: one denoiser whose active weights are switched at stage boundaries."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from weakref import WeakKeyDictionary, ref

import torch
from torch import nn

from .clock import on_stage
from .errors import DiffESError, several
from .heap import Kept
from .layers import Anatomy, RoomToCompile, base_parameters, check_groups, owned_by
from .layers.compiled import submodule
from .placements import Store
from .schedule import Stages


class Routing:
    """A denoiser that runs each stage with its own weights, from :meth:`attach` to :meth:`detach`.

    The stage is read off the timestep of every denoiser call, so the sampler, the number of steps, the batch, the
    guidance and the start of the trajectory may change from call to call. Where accelerate's hooks move the denoiser in
    and out (``enable_model_cpu_offload``), they move the weights of the stage that runs along with it; where they do
    so with each of its modules (``enable_sequential_cpu_offload``), they bring in the stage's.

    Args:
        denoiser: what is routed.
        anatomy: what can be pruned in it.
        stages: the intervals of timesteps.
        open_store: lays out the weights of all stages; called by :meth:`attach`.
    """

    def __init__(self, denoiser: nn.Module, anatomy: Anatomy, stages: Stages, open_store: Callable[[], Store]) -> None:
        self._denoiser, self._stages, self._open = denoiser, stages, open_store
        exchanged = {name for layer in anatomy.layers for name in owned_by(denoiser, layer)}
        paths = dict.fromkeys(name.rpartition(".")[0] for name in sorted(exchanged))
        self._owners = {path: submodule(denoiser, path) for path in paths}
        self._dtypes = {path: next(module.parameters()).dtype for path, module in self._owners.items()}
        # the first parameter that stays, adapters or not: where it lies tells whether the pipeline was moved; where
        # none stays, the first of those that take turns
        names = [name for name, _ in base_parameters(denoiser)]
        witness = next((name for name in names if name not in exchanged), names[0])
        owner, _, self._witness = witness.rpartition(".")
        self._witness_owner = submodule(denoiser, owner)

    @property
    def store(self) -> Store:
        """The weights of all stages, from :meth:`attach` on."""
        return self._store

    def attach(self) -> None:
        """Route from now on.

        Raises:
            DiffESError: the denoiser is routed already, or offloaded in groups with streams or to a folder.
        """
        denoiser = self._denoiser
        if denoiser in _ROUTED:
            remedy = "Leave the other `routed` context, or call `remove(pipe)`, first."
            found = "one that is routed already"
            raise DiffESError("denoiser", expected="a denoiser that is not routed", found=found, remedy=remedy)
        check_groups(denoiser)
        self._placed, self._adapters = self._placement(), self._loaded()
        self._store, self._heap = self._open(), Kept(self._placed[0])
        self._room = RoomToCompile(denoiser)
        self._handles = (
            on_stage(denoiser, self._stages, self._enter),
            denoiser.register_state_dict_pre_hook(self._refuse_saving),
            self._room,
        )
        _ROUTED[denoiser] = ref(self)

    def detach(self) -> None:
        """Restore the dense weights to the bit and leave nothing behind; a second time, do nothing."""
        if routing_of(self._denoiser) is not self:
            return
        for handle in self._handles:
            handle.remove()
        del _ROUTED[self._denoiser]
        self._store.close()
        self._heap.close()
        now = self._placement()
        if now[0].type != "meta" and (now != self._placed or self._offloaded()):
            self._follow(*now)  # moved or cast meanwhile

    def _enter(self, stage: int) -> None:
        self._room.enter()
        if (loaded := self._loaded()) != self._adapters:
            self._check_adapters()
            self._adapters = loaded
        now = self._placement()
        sequential = "meta" in (self._placed[0].type, now[0].type)  # where each module's weights wait elsewhere
        if now != self._placed and (sequential or not self._offloaded()):
            places = [" ".join(map(str, place)) for place in (self._placed, now)]
            expected, found = (place.replace("meta", "sequentially offloaded") for place in places)
            remedy = "Leave the `routed` context or call `remove(pipe)`, move the pipeline, and route it again."
            raise DiffESError("denoiser", expected=f"{expected}, as when it was routed", found=found, remedy=remedy)
        self._store.to(stage)
        if now != self._placed:  # accelerate's hook moves nothing where the first parameter is there already
            self._follow(*now)

    def _follow(self, device: torch.device, dtype: torch.dtype) -> None:
        """Move what is exchanged where the rest went, and cast it if that was: some models keep parts in float32."""
        for path, module in self._owners.items():
            nn.Module.to(module, device, self._dtypes[path] if dtype == self._placed[1] else dtype)

    def _placement(self) -> tuple[torch.device, torch.dtype]:
        parameter = getattr(self._witness_owner, self._witness)
        return parameter.device, parameter.dtype

    def _loaded(self) -> tuple[str, ...]:
        """Names of the adapters that peft has put into the denoiser."""
        return tuple(vars(self._denoiser).get("peft_config", ()))

    def _check_adapters(self) -> None:
        owners = self._owners.items()
        wrapped = [path for path, module in owners if submodule(self._denoiser, path) is not module]
        if wrapped:
            remedy = (
                "Leave the `routed` context or call `remove(pipe)`, and unload them; or fuse them and compress anew."
            )
            expected, found = "layers as they were when it was routed", f"adapters on {several(wrapped)}"
            raise DiffESError("denoiser", expected=expected, found=found, remedy=remedy)

    def _offloaded(self) -> bool:
        return "_hf_hook" in vars(self._denoiser)

    def _refuse_saving(self, *args: object) -> None:
        remedy = (
            "Leave the `routed` context or call `remove(pipe)` first, to save the denoiser, to load adapters into it "
            "or to offload it sequentially; the result itself is saved by its `save`."
        )
        expected, found = "a dense denoiser", "one stage's slim weights"
        raise DiffESError("state dict", expected=expected, found=found, remedy=remedy)


_ROUTED: WeakKeyDictionary[nn.Module, ref[Routing]] = WeakKeyDictionary()


def routing_of(denoiser: nn.Module) -> Routing | None:
    """The routing attached to a denoiser, if any."""
    held = _ROUTED.get(denoiser)
    return None if held is None else held()


@contextmanager
def attached(routing: Routing) -> Iterator[None]:
    """Route inside a ``with`` block; everything is restored at its end, also after an exception."""
    routing.attach()
    try:
        yield
    finally:
        routing.detach()


@contextmanager
def routed(denoiser: nn.Module, anatomy: Anatomy, stages: Stages, open_store: Callable[[], Store]) -> Iterator[Routing]:
    """:func:`attached` with a routing of its own."""
    routing = Routing(denoiser, anatomy, stages, open_store)
    with attached(routing):
        yield routing
