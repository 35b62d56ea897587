"""Any pipeline on timesteps of one's own choice.

Most pipelines take a number of steps and no timesteps, so a list is put in place behind the scheduler's
``set_timesteps``: a copy of the user's scheduler asks the original how it would step, then exchanges the timesteps and
their noise. Where two neighbours of the list are neighbours of the user's own trajectory, the step between them is the
user's own, to the bit. What asks for other steps than the list is refused (``chosen``), and so are corrections on
another arithmetic than theirs (:func:`check_corrected`).

A call of the denoiser depends on the timesteps up to its own alone, except under samplers of third order, which lower
their order when few steps are left.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any
from weakref import WeakKeyDictionary, ref

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from ..layers import submodule
from ..pipelines.families import Pipeline
from ..pipelines.own_sampler import OwnSampler, OwnStepping
from ..pipelines.own_sampler import stepping_of as own_stepping_of
from ..pipelines.sampling import AnyPipeline, denoiser_of
from ..trajectory.corrections import Correct, Corrections
from ..trajectory.timesteps import Trajectory
from ..utils.errors import ArtefactError, DiffESError, several
from .arithmetic import PLACING, changed, denoiser_input, settings_that_differ
from .chosen import Chosen
from .samplers import OTHERWISE, Scheduler, check_calls, check_scheduler, is_deterministic, is_flow, trajectory


class Stepping:
    """A pipeline that runs the given timesteps when it is called as before, from :meth:`attach` to :meth:`detach`.

    The user's scheduler is left alone: a copy of it takes its place in the pipeline. Another in that place is refused
    when the denoiser is called, and another denoiser in its place when the pipeline is.

    Args:
        pipe: any pipeline with one of the schedulers of ``STEPPABLE``.
        timesteps: strictly descending, as in ``scheduler.timesteps``.
        asked: the user's own number of steps, which the pipeline goes on being called with. The number of
            ``timesteps`` is understood too, any other is refused with a :class:`DiffESError` when the pipeline is
            called.
        correct: what each step's result is corrected by (``multistep``), of samplers that call the denoiser once a
            step; None: nothing.

    Raises:
        DiffESError: a scheduler that takes no other timesteps, or timesteps that it cannot take.
    """

    def __init__(self, pipe: Pipeline, timesteps: Sequence[float], asked: int, correct: Correct | None = None) -> None:
        _check_free(pipe)
        check_scheduler(pipe.scheduler)
        self._pipe, self._before = pipe, pipe.scheduler
        self.denoiser = denoiser_of(pipe)
        self._chosen = Chosen(pipe.scheduler, timesteps, asked, correct, _check_denoiser)
        self._stand_in = self._chosen.stand_in()
        self._handle: RemovableHandle | None = None  # while it is attached

    @property
    def corrections(self) -> Corrections:
        """Of the steps of the pipeline's last call, so far."""
        found: Corrections = self._stand_in.chosen_run.corrections
        return found

    def attach(self) -> None:
        """Run these timesteps from now on.

        Raises:
            DiffESError: the pipeline runs chosen timesteps already.
        """
        _check_free(self._pipe)
        self._pipe.scheduler = self._stand_in
        self._handle = self.denoiser.register_forward_pre_hook(_check_schedulers)
        _HEARD.setdefault(self.denoiser, []).append(ref(self))
        _STEPPED[self._pipe] = _STEPPED[self._stand_in] = ref(self)

    def detach(self) -> None:
        """Give the pipeline its own scheduler back, unless the user has exchanged it; a second time, do nothing.

        Other pipelines that were made meanwhile and hold the stand-in hold a copy of the user's scheduler from now on.
        """
        if not self._attached():
            return
        del _STEPPED[self._pipe], _STEPPED[self._stand_in]
        if self._handle is not None:
            self._handle.remove()
        heard = [held for held in _HEARD.pop(self.denoiser, []) if held() is not self]
        if heard:
            _HEARD[self.denoiser] = heard
        if self._pipe.scheduler is self._stand_in:
            self._pipe.scheduler = self._before
        self._chosen.release(self._stand_in)

    def _attached(self) -> bool:
        held = _STEPPED.get(self._pipe)
        return held is not None and held() is self

    def check_scheduler(self) -> None:
        """Whether the pipeline still has the scheduler that runs the chosen steps.

        Raises:
            DiffESError: it has another one.
        """
        if self._attached() and self._pipe.scheduler is not self._stand_in:
            remedy = (
                "Leave the `routed` context or call `remove(pipe)` first, give the pipeline its scheduler, and route "
                "it again."
            )
            expected, found = "the one that runs the chosen steps", f"another {type(self._pipe.scheduler).__name__}"
            raise DiffESError("pipe.scheduler", expected=expected, found=found, remedy=remedy)

    def check_denoiser(self) -> None:
        """Whether the pipeline still has the denoiser that the steps were chosen for, compiled or not.

        Raises:
            DiffESError: it has another one.
        """
        found: object = denoiser_of(self._pipe)
        if not isinstance(found, nn.Module) or submodule(found, "") is not submodule(self.denoiser, ""):
            remedy = "Leave the `routed` context or call `remove(pipe)` first, and then give the pipeline another."
            expected = "the denoiser that the chosen steps are for"
            raise DiffESError("pipe", expected=expected, found=f"another {type(found).__name__}", remedy=remedy)


_STEPPED: WeakKeyDictionary[Any, ref[Stepping]] = WeakKeyDictionary()  # by pipelines, and by the stand-ins they hold


_HEARD: WeakKeyDictionary[nn.Module, list[ref[Stepping]]] = WeakKeyDictionary()  # by denoisers


@torch.compiler.disable  # type: ignore[untyped-decorator]
def _check_schedulers(denoiser: nn.Module, *_: object) -> None:
    """A hook of denoisers; their copies, which have it too, are nobody's."""
    for held in _HEARD.get(denoiser, ()):
        if (stepping := held()) is not None:
            stepping.check_scheduler()


def _check_denoiser(stand_in: Scheduler) -> None:
    """When a stand-in begins to run the chosen steps."""
    held = _STEPPED.get(stand_in)
    if held is not None and (stepping := held()) is not None:
        stepping.check_denoiser()


def stepping_of(pipe: AnyPipeline | nn.Module) -> Stepping | OwnStepping | None:
    """The stepping attached to a pipeline, or whose stand-in it was given, if any; a denoiser by itself takes no
    steps."""
    if isinstance(pipe, nn.Module):
        return None
    if isinstance(pipe, OwnSampler):
        return own_stepping_of(pipe)
    held = _STEPPED.get(pipe) or _STEPPED.get(pipe.components["scheduler"])
    return None if held is None else held()


def _check_free(pipe: Pipeline) -> None:
    if stepping_of(pipe) is not None:
        remedy = "Leave the other `stepped` context, or call `remove(pipe)`, first."
        found = "one that runs chosen timesteps already"
        raise DiffESError("pipe", expected="a pipeline with its own scheduler", found=found, remedy=remedy)


def stepping(
    pipe: AnyPipeline | nn.Module, timesteps: Sequence[float], asked: int, correct: Correct | None = None
) -> Stepping | OwnStepping:
    """The stepping of a pipeline, or of a loop of the user's own, not attached yet; raises as they do."""
    if isinstance(pipe, OwnSampler):
        return OwnStepping(pipe, timesteps, asked, correct)
    return Stepping(pipe, timesteps, asked, correct)


@contextmanager
def stepped(
    pipe: AnyPipeline, timesteps: Sequence[float], asked: int, correct: Correct | None = None
) -> Iterator[Stepping | OwnStepping]:
    """Run chosen timesteps inside a ``with`` block, as :class:`Stepping` does; its end restores everything."""
    chosen = stepping(pipe, timesteps, asked, correct)
    chosen.attach()
    try:
        yield chosen
    finally:
        chosen.detach()


def correctable(pipe: AnyPipeline) -> bool:
    """Whether steps can be corrected: the sampler adds no noise of its own, and a loop of the user's own lets them."""
    return pipe.corrects if isinstance(pipe, OwnSampler) else is_deterministic(pipe.components["scheduler"])


def own_path(pipe: Pipeline, timesteps: Sequence[float], calls: int) -> Trajectory:
    """The user's own trajectory, of whose steps there may be more or fewer.

    Args:
        timesteps: of the denoiser's calls, as ``pipeline.trace`` gives them.
        calls: of each step.

    Raises:
        DiffESError: a sampler that takes no other timesteps, or of which a step calls the denoiser at several.
    """
    if isinstance(pipe, OwnSampler):
        if timesteps != tuple(t for t in pipe.path.timesteps for _ in range(calls)):
            shown, remedy = ", ".join(f"{t:g}" for t in timesteps[:6]), f"Or search levels alone ({OTHERWISE})."
            expected = "the times as the denoiser receives them, one after the other: the loop converts them to its own"
            raise DiffESError("OwnSampler.times", expected=expected, found=f"calls at {shown}, ...", remedy=remedy)
        return pipe.path
    check_calls(pipe.scheduler)
    return trajectory(pipe.scheduler, timesteps)


def check_corrected(scheduler: Scheduler, made: Mapping[str, Any], timesteps: Sequence[float], asked: int) -> None:
    """Whether corrections of steps are for the arithmetic of this scheduler.

    Its class and settings have to be those that the corrections were made with. Settings that only say where its own
    timesteps stand may differ, as long as the chosen ones are run the same, to the bit. Timesteps without corrections
    ask for none of this: they are places on the trajectory, which any sampler may take.

    Args:
        made: class and settings of the scheduler that steps were corrected for, as an ``Origin`` has them.
        timesteps: the chosen ones.
        asked: the user's own number of steps.

    Raises:
        ArtefactError: they are not; the message names what differs.
        DiffESError: a scheduler that takes no other timesteps.
    """
    kind = type(scheduler)
    if kind.__name__ != made["_class_name"]:
        raise _mismatch(made, kind.__name__)
    check_scheduler(scheduler)
    settings, names = settings_that_differ(scheduler, made), changed(scheduler, kind.from_config(scheduler.config))
    # where a scheduler is shifted by the size of the image, its own timesteps are known in a call only
    sized = scheduler.config.get("use_dynamic_shifting") or made.get("use_dynamic_shifting")
    placing = frozenset[str]() if sized else PLACING
    found = [f"{name} other than {settings[name]}" for name in sorted(settings.keys() - placing)]
    found += [f"another {name}" for name in sorted(names) if name.lstrip("_") not in placing]
    if not found and (settings or names) and not _alike(scheduler, made, timesteps, asked):
        others = sorted({*settings, *(name.lstrip("_") for name in names)})
        found = [f"another {', '.join(others)}, which changes the steps"]
    if found:
        raise _mismatch(made, f"one with {several(found)}")


def _mismatch(made: Mapping[str, Any], found: str) -> ArtefactError:
    kind = made["_class_name"]
    remedy = (
        f"Give the pipeline the scheduler that it was compressed with: pipe.scheduler = {kind}.from_config("
        "fast.origin.scheduler); or compress it with this one."
    )
    return ArtefactError("scheduler", expected=f"{kind}, for which steps are corrected", found=found, remedy=remedy)


def _alike(scheduler: Scheduler, made: Mapping[str, Any], timesteps: Sequence[float], asked: int) -> bool:
    """Whether a scheduler does the same on the timesteps as one with saved settings, to the bit."""
    own = _run(scheduler, timesteps, asked)
    try:
        saved = _run(type(scheduler).from_config(dict(made)), timesteps, asked)
    except (ValueError, TypeError, ArithmeticError, LookupError):  # settings that no scheduler was ever made with
        return False
    return all(map(torch.equal, own, saved))


def _run(scheduler: Scheduler, timesteps: Sequence[float], asked: int) -> list[Tensor]:
    """The states of a run with a denoiser that asks for all that it is given."""
    stand_in = Chosen(scheduler, timesteps, asked).stand_in()
    for name, value in vars(stand_in).items():
        if isinstance(value, Tensor):
            setattr(stand_in, name, value.cpu())
    stand_in.set_timesteps(asked)
    first = 1.0 if is_flow(stand_in) else stand_in.init_noise_sigma
    states = [torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0)) * first]
    with torch.random.fork_rng([]):
        torch.default_generator.manual_seed(0)  # for samplers that draw noise
        for t in stand_in.timesteps:
            output = torch.tanh(denoiser_input(stand_in, states[-1], t) * 2 + t / 1000).roll(1, -1)
            states.append(stand_in.step(output, t, states[-1]).prev_sample)
    return states
