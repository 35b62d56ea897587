"""A dense run whose numbers overflow is refused, with what made the first number that is none."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any, NoReturn

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from ..utils.calls import Args, Kwargs
from ..utils.errors import DiffESError, several
from .denoiser import dtype_of
from .families import Pipeline, Sampling
from .own_sampler import OwnSampler
from .probes import Probe
from .sampling import denoiser_name, denoiser_of, sample, sampler_name
from .timestep_hook import on_timestep


def check_finite(pipe: Pipeline, probes: Sequence[Probe], sampling: Sampling, result: Tensor) -> None:
    """Whether what the pipeline has made of the probes, or an image of it, is finite.

    Where it is not, the pipeline runs once more, to see what is to blame.

    Raises:
        DiffESError: it is not; the message names the weights, the layer or the scheduler that the first number which is
            none comes from.
    """
    if _finite(result):
        return
    parts = {"denoiser": denoiser_of(pipe)} if isinstance(pipe, OwnSampler) else pipe.components
    modules = [(name, part) for name, part in parts.items() if isinstance(part, nn.Module)]
    broken = [f"{name}.{key}" for name, part in modules for key, value in part.named_parameters() if not _finite(value)]
    if broken:
        remedy = "Load it anew, in float32 or bfloat16; if it stays so, the files themselves are damaged."
        _refuse(f"the weights {several(broken)}", remedy)
    watch, denoiser = _Watch(pipe), denoiser_of(pipe)
    with ExitStack() as stack:
        stack.enter_context(torch.compiler.set_stance("force_eager"))  # compiled code would trace the hooks
        stack.callback(on_timestep(denoiser, watch.at).remove)
        stack.callback(denoiser.register_forward_pre_hook(watch.enter, with_kwargs=True).remove)
        for name, module in denoiser.named_modules():
            stack.callback(module.register_forward_hook(partial(watch.leave, name)).remove)
        latents = sample(pipe, probes, sampling)
    if not _finite(latents):
        watch.blame_scheduler()
    remedy = "Compare latents, not images: `LatentSNR()`, `--measure snr`."
    if isinstance(pipe, OwnSampler):
        _refuse("OwnSampler.decode, of finite latents", remedy)
    _refuse(f"the decoder's images of finite latents, in {_dtype(pipe.vae)}", _remedy(pipe.vae, remedy))


class _Watch:
    """Hooks that stop a run at the first number that is none."""

    def __init__(self, pipe: Pipeline) -> None:
        self._pipe, self._called, self._timestep, self._before = pipe, False, 0.0, 0.0

    def at(self, timestep: float) -> None:
        self._before, self._timestep = self._timestep, timestep

    def enter(self, module: nn.Module, args: Args, kwargs: Kwargs) -> None:
        """Before a call of the denoiser."""
        if all(map(_finite, tree_leaves((args, kwargs)))):
            self._called = True
            return
        if self._called:
            self._timestep = self._before
            self.blame_scheduler()
        named = [name for name, value in kwargs.items() if not all(map(_finite, tree_leaves(value)))]
        remedy = _remedy(denoiser_of(self._pipe), "Take other prompts or another text encoder.")
        _refuse(f"{several(named) or 'the inputs'}, which the pipeline gives to its denoiser", remedy)

    def leave(self, name: str, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        """After a call of a module in the denoiser; those inside of it come first."""
        if all(map(_finite, tree_leaves(output))):
            return
        denoiser = denoiser_of(self._pipe)
        if not all(map(_finite, tree_leaves(args))):  # it went wrong between two modules of one that is called
            name = name.rpartition(".")[0]
            while isinstance(denoiser.get_submodule(name), nn.ModuleList):
                name = name.rpartition(".")[0]
        whole = "denoiser" if isinstance(self._pipe, OwnSampler) else denoiser_name(self._pipe)
        place = ".".join(filter(None, (whole, name)))
        remedy = _remedy(denoiser, "Take another sampler, or less guidance: at this setting the model overflows.")
        _refuse(f"{place}, at timestep {self._timestep:g} in {_dtype(denoiser)}", remedy)

    def blame_scheduler(self) -> NoReturn:
        if isinstance(self._pipe, OwnSampler):
            remedy = "Let it end where its formulas are finite, or take another number of steps."
            _refuse(f"the step of {sampler_name(self._pipe)} from time {self._timestep:g}", remedy)
        scheduler = self._pipe.scheduler
        remedy = "Give pipe.scheduler another class or another setting, with `from_config`."
        if scheduler.config.get("rescale_betas_zero_snr") and scheduler.config.prediction_type == "epsilon":
            remedy = "Set rescale_betas_zero_snr to False: it is for models that predict velocity (`v_prediction`)."
        _refuse(f"the step of {type(scheduler).__name__} from timestep {self._timestep:g}", remedy)


def _refuse(found: str, remedy: str) -> NoReturn:
    found = f"NaN or infinity from {found}"
    raise DiffESError("the dense model's result", expected="finite numbers", found=found, remedy=remedy)


def _remedy(part: Any, other: str) -> str:
    """What to do about a part that overflows: ``other`` where its arithmetic has the range of float32 already."""
    return "Use float32 or bfloat16 arithmetic." if dtype_of(part) is torch.float16 else other


def _finite(value: Any) -> bool:
    """Whether a tensor has no number that is none; True for all else, and for what waits elsewhere."""
    if not isinstance(value, Tensor) or value.is_meta or not value.is_floating_point():
        return True
    return bool(torch.isfinite(value).all())


def _dtype(part: Any) -> str:
    return str(dtype_of(part)).removeprefix("torch.")
