"""Weight routing: one denoiser whose active weights are switched for every call of a stage.

Between calls all is dense: parameters, attributes, forwards. So whatever a user does to the denoiser then, copying,
moving, casting, fusing, loading, he does to the dense model, and the next call sees what has changed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import RLock
from types import MethodType
from typing import Any

import torch
from torch import nn
from torch.jit import is_tracing  # type: ignore[attr-defined]

from ..layers import anatomy_of, check_groups, room_to_compile
from ..trajectory.stages import Stages
from ..utils.calls import Args, Kwargs
from ..utils.errors import DiffESError
from ..utils.malloc import Kept
from .known import Known
from .placements import Store
from .stage_hook import stage_reader


class Routing:
    """A denoiser that runs each stage with its own weights, from :meth:`attach` to :meth:`detach`.

    The stage is read off the timestep of every denoiser call, so the sampler, the number of steps, the batch, the
    guidance and the start of the trajectory may change from call to call. Calls from several threads take turns, and
    every pipeline that holds the denoiser runs routed. Where accelerate's hooks move the denoiser in and out
    (``enable_model_cpu_offload``), they move the weights of the stage that runs along with it; where they do so with
    each of its modules (``enable_sequential_cpu_offload``), they bring in the stage's.

    Args:
        denoiser: what is routed.
        stages: the intervals of timesteps.
        open_store: lays out the weights of all stages for the dense denoiser as it is then.
        check: raises where a denoiser that has changed is no longer the one that the weights are for; where it is, the
            store is opened anew. None: the same modules with the same weights are, wherever they lie.
        ending: called by :meth:`detach`.
    """

    def __init__(
        self,
        denoiser: nn.Module,
        stages: Stages,
        open_store: Callable[[], Store],
        check: Callable[[], None] | None = None,
        ending: Callable[[], None] | None = None,
    ) -> None:
        self._denoiser, self._open = denoiser, open_store
        self._anatomy = anatomy_of(denoiser)
        self._check, self._ending = check, ending
        self._stage_of = stage_reader(denoiser, stages)
        self._lock, self._turns = RLock(), list[int]()  # stages of the calls under way, one within another
        self._store: Store | None = None  # None where what has changed was refused, too
        self._known: Known | None = None
        self._heap: Kept | None = None
        self._calls: Callable[..., Any] = MethodType(type(denoiser)._call_impl, denoiser)

    @property
    def store(self) -> Store:
        """The weights of all stages, from :meth:`attach` to :meth:`detach`."""
        assert self._store is not None
        return self._store

    def attach(self) -> None:
        """Route from now on.

        Raises:
            DiffESError: the denoiser is routed already, or offloaded in groups with streams or to a folder.
        """
        denoiser = self._denoiser
        if routing_of(denoiser) is not None:
            remedy = "Leave the other `routed` context, or call `remove(pipe)`, first."
            found = "one that is routed already"
            raise DiffESError("denoiser", expected="a denoiser that is not routed", found=found, remedy=remedy)
        own, self._store = vars(denoiser), self._open_anew()
        own[_CALL], own["_state_dict_pre_hooks"][_CALL] = self, _refuse_in_a_call
        try:
            self._heap = Kept(next(denoiser.parameters()).device)
            if (compiled := own.get(_COMPILED)) is not None:
                self._calls = compiled
                own[_COMPILED] = self
            self._rest()
        except BaseException:
            self.detach()
            raise

    def detach(self) -> None:
        """Leave the dense denoiser and nothing else behind; a second time, do nothing."""
        with self._lock:
            if routing_of(self._denoiser) is not self:
                return
            if self._ending is not None:
                self._ending()
            self._close()
            if self._heap is not None:
                self._heap.close()
            own = vars(self._denoiser)
            del own[_CALL], own["_state_dict_pre_hooks"][_CALL]
            if own.get(_COMPILED) is self:
                own[_COMPILED] = self._calls

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """A call of the denoiser, hooks included.

        Raises:
            DiffESError: the denoiser is no longer the one that the weights are for, or the call is being traced,
                exported or captured, which would keep one stage's weights.
        """
        captured = torch.cuda.is_initialized() and torch.cuda.is_current_stream_capturing()
        if is_tracing() or torch.compiler.is_exporting() or captured:
            found, remedy = "a call that is traced, which would keep one stage's", "Leave the routed context first."
            raise DiffESError("denoiser", expected="weights that are switched", found=found, remedy=remedy)
        return self._in_turn(args, kwargs)

    @torch.compiler.disable(recursive=False)  # type: ignore[untyped-decorator]
    def _in_turn(self, args: Args, kwargs: Kwargs) -> Any:
        with self.turn(self._stage_of(args, kwargs)):
            return self._calls(*args, **kwargs)

    def __deepcopy__(self, memo: dict[int, Any]) -> Callable[..., Any]:
        """What a copy of the denoiser, which is dense, is called by: its own class."""
        if self.busy:
            remedy = "Copy it between calls."
            raise DiffESError("denoiser", expected="one at rest", found="a call in another thread", remedy=remedy)
        copied: nn.Module = memo[id(self._denoiser)]
        return MethodType(type(copied)._call_impl, copied)

    def __reduce_ex__(self, protocol: Any) -> Any:
        remedy = "Leave the `routed` context or call `remove(pipe)` first; copy.deepcopy gives a dense copy."
        raise DiffESError("denoiser", expected="a dense one to pickle", found="a routed one", remedy=remedy)

    @property
    def busy(self) -> bool:
        """Whether a call is under way."""
        return bool(self._turns)

    @contextmanager
    def turn(self, stage: int) -> Iterator[None]:
        """With the weights of a stage in place; other threads wait.

        Raises:
            DiffESError: the denoiser is no longer the one that the weights are for.
        """
        with self._lock:
            if routing_of(self._denoiser) is not self:  # which was left while this call waited
                yield
                return
            if not self._turns:
                self._ready()
            self._turns.append(stage)
            try:
                with _own_mode():
                    self.store.to(stage)
                    self._follow()
                with room_to_compile():
                    yield
            finally:
                self._turns.pop()
                self._after()

    def _after(self) -> None:
        """After a call: back to the stage of the call around it, or to rest."""
        if self._turns:
            with _own_mode():
                self.store.to(self._turns[-1])
            return
        try:
            self._rest()
        except BaseException:  # an interrupt: once more, whole
            self._rest()
            raise

    def _rest(self) -> None:
        assert self._known is not None
        with _own_mode():
            self.store.rest()
        self._known.guard.up()

    def _looked(self) -> None:
        """Somebody looks at parameters between calls: they are to be dense in every respect."""
        with self._lock, _own_mode():
            self.store.settle()

    def _ready(self) -> None:
        """See what has changed since the last call; if anything has, check it, and lay out the weights anew."""
        known, found = self._known, None
        assert known is not None
        looked_at = not known.guard.watching
        known.guard.down()
        found = known.likeness.changed()
        if found is None and looked_at:
            found = known.likeness.rewritten(moves=_offloaded(self._denoiser))
        if found is None and self._store is not None:
            return
        self._close()
        if self._check is not None:
            self._check()
        elif known.likeness.rewritten(moves=True) or anatomy_of(self._denoiser) != self._anatomy:
            remedy = "Leave the routed context first."
            expected = "one as it was when it was routed"
            raise DiffESError("denoiser", expected=expected, found=found or "another", remedy=remedy)
        self._anatomy, self._known = anatomy_of(self._denoiser), None
        self._store = self._open_anew()

    def _open_anew(self) -> Store:
        """Lay the weights out for the dense denoiser as it is now."""
        check_groups(self._denoiser)
        if self._known is None or not self._known.holds():
            self._known = Known(self._denoiser, self._anatomy, self._looked)
        with _own_mode():
            return self._open()

    def _close(self) -> None:
        """All is dense, and lies where the rest of the denoiser does."""
        if self._store is not None and self._known is not None:
            self._known.guard.down()
            with _own_mode():
                self._store.close()
                if _offloaded(self._denoiser):
                    self._known.follow()
        self._store = None  # now that it has, and not where it failed

    def _follow(self) -> None:
        """Move what is in place where the rest went: accelerate's hook moves nothing where the first parameter is there
        already."""
        if _offloaded(self._denoiser) and self._known is not None and self._known.moved():
            self._known.follow()


@contextmanager
def _own_mode() -> Iterator[None]:
    """Weights are made and moved in one mode, whichever a call comes in: memory of PyTorch's inference mode cannot be
    written to in any other."""
    with torch.inference_mode(False), torch.no_grad():
        yield


_CALL, _COMPILED = "_call_impl", "_compiled_call_impl"
"""What a module's call looks up, the second first: attributes of the class, which a routed denoiser has of its own."""


def routing_of(denoiser: nn.Module) -> Routing | None:
    """The routing attached to a denoiser, if any."""
    held = vars(denoiser).get(_CALL)
    return held if isinstance(held, Routing) else None


def _refuse_in_a_call(denoiser: nn.Module, *args: object) -> None:
    """Of a state dict: another thread's call has slim weights in place."""
    routing = routing_of(denoiser)
    if routing is not None and routing.busy:
        remedy = "Save it between calls, or leave the routed context first."
        expected, found = "a denoiser at rest", "one stage's slim weights, in a call that is under way"
        raise DiffESError("state dict", expected=expected, found=found, remedy=remedy)


def _offloaded(denoiser: nn.Module) -> bool:
    return "_hf_hook" in vars(denoiser)


@contextmanager
def attached(routing: Routing) -> Iterator[None]:
    """Route inside a ``with`` block; everything is restored at its end, also after an exception."""
    routing.attach()
    try:
        yield
    finally:
        routing.detach()


@contextmanager
def routed(
    denoiser: nn.Module,
    stages: Stages,
    open_store: Callable[[], Store],
    check: Callable[[], None] | None = None,
) -> Iterator[Routing]:
    """:func:`attached` with a routing of its own."""
    routing = Routing(denoiser, stages, open_store, check)
    with attached(routing):
        yield routing
