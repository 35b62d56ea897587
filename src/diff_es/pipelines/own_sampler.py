"""A denoiser without a pipeline, and the loop of the user's own that samples with it."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, Any, TypeAlias
from weakref import WeakKeyDictionary

import numpy as np
import torch
from pydantic import BeforeValidator, Field
from torch import Tensor, nn

from ..trajectory.corrections import Correct, Corrections, corrected
from ..trajectory.timesteps import Trajectory, check_descending, trailing
from ..utils.arguments import Text, checked
from ..utils.calls import Kwargs
from ..utils.errors import DiffESError
from ..utils.limits import End, Pixels, Time
from .denoiser import device_of, dtype_of

Loop: TypeAlias = Callable[..., Tensor]


def _listed(value: Any) -> Any:
    value = value.tolist() if isinstance(value, Tensor | np.ndarray) else value
    return tuple(value) if isinstance(value, list | range) else value


_LISTED = BeforeValidator(_listed)


@checked()
@dataclass(frozen=True, eq=False)
class OwnSampler:
    """A denoiser and the loop that samples with it: what takes the place of a pipeline, everywhere.

    Called with noises, and conditions where the loop takes them, it runs the loop: inside of ``fast.routed(own)`` by
    the steps that were chosen.

    Args:
        denoiser: what is pruned, in evaluation mode: declared (``diff_es.declare``), or a model of diffusers.
        sample: the loop, ``sample(denoiser, noise)``: it makes final latents (N, ...) of noises (N, *noise), and calls
            the denoiser that it is given. Behind the noises it is given, where these are said here, a list with the
            condition of each, the list of ``times``, and ``correct``; what else it takes, such as guidance, is bound
            beforehand (``functools.partial``). Noise that it adds on the way it draws from PyTorch's own generator.
        noise: the shape of one noise, without the batch.
        times: at which the loop calls the denoiser, as this receives them, from noise to image. The loop has to take
            any other such list, longer or shorter, for steps to be a choice. Integers where it takes nothing else.
            Diffusers' own transformers of Flux, Qwen-Image and Sana receive a fraction of their scheduler's timestep:
            of these, say that timestep, and let the loop scale it. None: the loop takes no list, and stages are found
            by listening to the denoiser.
        conditions: what samples can be asked for, numbers or texts, on which the search is judged in turn.
        end: the time that the last step leads to; None: -1 after integers, which is past 0, else 0.
        corrects: whether the loop takes a function as its last argument and puts every step through it,
            ``x = correct(x, stepped)``, going on with what comes back. Then steps can be corrected
            (``trajectory.corrections``), which makes up for those that are left out. For loops that add no noise.
        decode: images (N, 3, H, W) in [0, 1] of latents; None: there are no images, and latents are compared.
    """

    denoiser: nn.Module
    sample: Loop
    noise: Annotated[Sequence[Pixels], _LISTED]
    times: Annotated[Annotated[Sequence[Time], Field(min_length=1)] | None, _LISTED] = None
    conditions: Annotated[Sequence[int | Text], _LISTED] = ()
    end: End | None = None
    corrects: bool = False
    decode: Callable[[Tensor], Tensor] | None = None

    def __post_init__(self) -> None:
        if self.corrects and self.times is None:
            raise self.without_times("a loop whose steps can be corrected")
        if self.times is not None and self.path.timesteps[-1] <= self.path.end:
            remedy = "Leave it out of the times: the denoiser is not called there. Or say another end."
            expected, found = f"times above the end, {self.path.end:g}", f"{self.times[-1]:g}"
            raise DiffESError("OwnSampler.times", expected=expected, found=found, remedy=remedy)
        try:
            inspect.signature(self.sample).bind(*self._arguments(torch.empty(0), (), (), _Run(None)))
        except (TypeError, ValueError) as error:
            expected, remedy = (
                f"a function of ({', '.join(self._names)})",
                "Bind what else it takes: functools.partial.",
            )
            raise DiffESError("OwnSampler.sample", expected=expected, found=str(error), remedy=remedy) from error

    def __call__(self, noise: Tensor, conditions: Sequence[int | str] = ()) -> Tensor:
        """Final latents (N, ...) of noises (N, ...), by the steps that are chosen where a result is applied.

        Args:
            conditions: one for each noise, where the loop takes them.

        Raises:
            DiffESError: noises or conditions of another number or shape.
        """
        expected, shape = (len(noise) if self.conditions else 0), ", ".join(map(str, self.noise))
        if noise.shape[1:] != tuple(self.noise):
            remedy = "Draw torch.randn(N, ...) of the shape that the OwnSampler was made with."
            raise DiffESError("noise", expected=f"(N, {shape})", found=str(tuple(noise.shape)), remedy=remedy)
        if len(conditions) != expected:
            remedy = "Give one for each noise, where the OwnSampler has conditions."
            raise DiffESError("conditions", expected=str(expected), found=str(len(conditions)), remedy=remedy)
        return self._run(noise, conditions, None)

    def latents(
        self,
        seeds: Sequence[int],
        conditions: Sequence[int | str | None] = (),
        steps: int | None = None,
        batch: int = 16,
    ) -> Tensor:
        """Final latents of seeds, each of which draws its own noise.

        Args:
            conditions: one for each seed, where the loop takes them.
            steps: as many as the times, or as are to lie evenly in their place; None: those of the times.
            batch: how many at a time, which share the noise that a loop adds on its way.
        """
        device, results = device_of(self.denoiser), list[Tensor]()
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            for start in range(0, len(seeds), batch):
                part = seeds[start : start + batch]
                noises = [
                    torch.randn(tuple(self.noise), generator=torch.Generator().manual_seed(seed)) for seed in part
                ]
                torch.manual_seed(part[0])  # for loops that add noise
                noise = torch.stack(noises).to(device, dtype_of(self.denoiser))
                results.append(self._run(noise, conditions[start : start + batch], steps))
        return torch.cat(results)

    def images(self, latents: Tensor, batch: int) -> Tensor:
        """Images in [0, 1] of latents, or without a decoder these themselves, float32 on the CPU."""
        if self.decode is None:
            return latents.float().cpu()
        with torch.no_grad():
            return torch.cat([self.decode(part).clamp(0, 1).float().cpu() for part in latents.split(batch)])

    @cached_property
    def path(self) -> Trajectory:
        """The loop's own steps.

        Raises:
            DiffESError: it takes no times, or they do not descend.
        """
        if self.times is None:
            raise self.without_times("a loop whose steps are a choice")
        whole = all(type(time) is int for time in self.times)
        end = (-1.0 if whole else 0.0) if self.end is None else float(self.end)
        return Trajectory(tuple(self.times), end, whole, ())

    def without_times(self, expected: str) -> DiffESError:
        """What says that the loop takes no times, which ``expected`` does."""
        remedy = (
            "Let the loop take the list of times at which it calls the denoiser, and give OwnSampler its own: "
            "times=...; or search levels alone (levers=Levers.PRUNE, `--levers prune`)."
        )
        return DiffESError("OwnSampler.times", expected=f"{expected}, which has times", found="none", remedy=remedy)

    def steps_at(self, heard: Sequence[float], steps: int | None) -> tuple[float, ...]:
        """The times of a run's steps, for what was heard of the denoiser's calls, which may be rounded: the loop's own
        where it hands these on, else as they were heard."""
        found = tuple(dict.fromkeys(heard))
        own = () if self.times is None else self._spaced(steps)
        same = len(own) == len(found) and all(abs(a - b) <= 2**-8 * max(a, b) for a, b in zip(own, found, strict=True))
        return own if same else found

    def _spaced(self, steps: int | None) -> tuple[float, ...]:
        own = self.path.timesteps
        return own if steps in (None, len(own)) else trailing(self.path, steps)

    @property
    def _names(self) -> list[str]:
        told = {"conditions": bool(self.conditions), "times": self.times is not None, "correct": self.corrects}
        return ["denoiser", "noise", *(name for name, given in told.items() if given)]

    def _arguments(self, noise: Tensor, conditions: Sequence[Any], times: Sequence[float], correct: _Run) -> list[Any]:
        given: Kwargs = {"denoiser": self.denoiser, "noise": noise, "conditions": list(conditions)}
        given |= {"times": list(times), "correct": correct}
        return [given[name] for name in self._names]

    def _run(self, noise: Tensor, conditions: Sequence[Any], steps: int | None) -> Tensor:
        chosen, run, times = _CHOSEN.get(self), _Run(None), tuple[float, ...]()
        if chosen is not None:
            times, run = chosen.begin(steps)
        elif self.times is not None:
            times = self._spaced(steps)
        with torch.no_grad():
            found = self.sample(*self._arguments(noise, conditions, self._handed(times), run))
        if not isinstance(found, Tensor) or len(found) != len(noise):
            shown = tuple(found.shape) if isinstance(found, Tensor) else f"a {type(found).__name__}"
            expected, remedy = f"final latents of {len(noise)} noises", "Let the loop return them as one tensor."
            raise DiffESError("OwnSampler.sample", expected=expected, found=str(shown), remedy=remedy)
        if chosen is not None:
            chosen.end(run)
        return found

    def _handed(self, times: Sequence[float]) -> list[float]:
        """Times as the loop is given them: integers where they are, and its own as they were said, which a schedule
        holds in float32."""
        if not times:
            return []
        said = dict(zip(self.path.timesteps, self.times or (), strict=True))
        return [int(time) if self.path.whole else said.get(time, time) for time in times]


class _Run:
    """Takes each step of one run, and gives its result back with the correction."""

    def __init__(self, correct: Correct | None) -> None:
        self._correct, self._starts = correct, list[Tensor]()
        self.corrections: Corrections = ()

    def __call__(self, start: Tensor, result: Tensor) -> Tensor:
        """The result of a step from ``start``, as the loop is to go on with it."""
        if self._correct is None:
            return result
        if start.data_ptr() == result.data_ptr():
            remedy = "Do not step in place: x = correct(x, x + dt * output)."
            raise DiffESError("correct", expected="a step's start and its result", found="one tensor", remedy=remedy)
        states = [result, start, *self._starts]
        weights = tuple(self._correct(len(self.corrections), states))
        self.corrections, self._starts = (*self.corrections, weights), states[1:][: max(len(weights) - 1, 0)]
        return corrected(states, weights)


class OwnStepping:
    """A loop that runs chosen times, from :meth:`attach` to :meth:`detach`; as ``stepping.Stepping`` for pipelines.

    Args:
        timesteps: strictly descending.
        asked: the number of steps that it goes on being asked for.
        correct: what each step's result is corrected by; None: nothing.

    Raises:
        DiffESError: a loop that takes no times, or no corrections, or times that are none; or it runs others already.
    """

    def __init__(self, own: OwnSampler, timesteps: Sequence[float], asked: int, correct: Correct | None = None) -> None:
        self._own, self._timesteps, self._asked, self._correct = own, tuple(timesteps), asked, correct
        self.corrections: Corrections = ()  # of the steps of the last call
        check_descending(self._timesteps)
        path = own.path
        if self._timesteps[-1] <= path.end or (path.whole and any(t % 1 for t in self._timesteps)):
            expected = f"{'integers' if path.whole else 'numbers'} above {path.end:g}"
            remedy = "Give OwnSampler the times and the end that the result was made with."
            raise DiffESError("times", expected=expected, found=str(list(timesteps)), remedy=remedy)
        if correct is not None and not own.corrects:
            remedy = (
                "Let the loop put its steps through `correct`, and say corrects=True; or search with corrections=0."
            )
            expected = "a loop whose steps can be corrected"
            raise DiffESError("OwnSampler", expected=expected, found="one that takes no `correct`", remedy=remedy)

    def attach(self) -> None:
        """Run these times from now on.

        Raises:
            DiffESError: others are chosen already.
        """
        if stepping_of(self._own) is not None:
            remedy = "Leave the other `routed` context, or call `remove(own)`, first."
            found = "one that runs chosen times already"
            raise DiffESError("OwnSampler", expected="one with its own times", found=found, remedy=remedy)
        _CHOSEN[self._own] = self

    @property
    def denoiser(self) -> Any:
        """That of the loop."""
        return self._own.denoiser

    def detach(self) -> None:
        """Run the loop's own times again; a second time, do nothing."""
        if stepping_of(self._own) is self:
            del _CHOSEN[self._own]

    def begin(self, steps: int | None) -> tuple[tuple[float, ...], _Run]:
        """The times of a call, and what takes its steps."""
        if steps not in (None, self._asked, len(self._timesteps)):
            expected = f"{self._asked}, for which {len(self._timesteps)} were chosen"
            raise DiffESError("steps", expected=expected, found=str(steps), remedy="Ask for that number.")
        return self._timesteps, _Run(self._correct)

    def end(self, run: _Run) -> None:
        """What the steps of a call were corrected by."""
        if self._correct is not None and len(run.corrections) != len(self._timesteps):
            expected, remedy = f"{len(self._timesteps)} calls, one a step", "Call it once for each of the times."
            raise DiffESError("correct", expected=expected, found=str(len(run.corrections)), remedy=remedy)
        self.corrections = run.corrections


_CHOSEN: WeakKeyDictionary[OwnSampler, OwnStepping] = WeakKeyDictionary()


def stepping_of(own: OwnSampler) -> OwnStepping | None:
    """The stepping attached to a loop, if any."""
    return _CHOSEN.get(own)
