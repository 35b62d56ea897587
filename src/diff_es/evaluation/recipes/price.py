"""What a run will take, before it begins: hours, memory and disk, as far as they can be known here."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from enum import StrEnum
from pathlib import Path

import torch

from ...compression.result import load as load_result
from ...layers import anatomy_of
from ...pipelines.configured import SHRINKS, call_without_pipeline, without_weights
from ...pipelines.denoiser import device_of
from ...pipelines.loading import at_hand, default_device
from ...pipelines.probes import make_probes, read_prompts
from ...pipelines.sampling import decode, denoiser_of, sample
from ...pruning.latency import nanoseconds
from ...pruning.macs import MacCounter
from ...utils.errors import DiffESError
from ...utils.memory import peak_memory
from .measures import Made, Measures, Opened, judge, measures_of, opened_metric
from .opened import pipeline_of
from .recipe import Metric, Part, Recipe

_SIDE, _ROUNDS = 1024, 5
"""Of the matrices by whose product a device's speed is seen, and how often."""


class Basis(StrEnum):
    """What a price is made from."""

    TIMED = "calls of the pipeline, timed here"
    COUNTED = "the multiply-adds of the denoiser alone, at the speed of a matrix product here: it takes no less"
    NOTHING = "nothing: the weights are not here, and the recipe does not say the denoiser's size"


@dataclass(frozen=True)
class Price:
    """Of a run: None is not known. A result is counted like the dense model; it takes less."""

    basis: Basis
    seconds: float | None
    memory: int | None  # bytes at the most, of the device
    disk: int | None  # bytes of the scores, and of the images where they are kept
    missing: tuple[str, ...]  # what the run needs and is not here

    def to_json(self) -> dict[str, object]:
        """JSON values."""
        return asdict(self)


@dataclass(frozen=True)
class _Cost:
    """Of sampling a batch, and of judging it."""

    sampling: float  # seconds
    judging: float
    memory: int
    scores: int  # bytes of one image's
    pixels: int  # of one image


def price(recipe: Recipe, device: str | None = None, *, keep: bool = False) -> Price:
    """What a recipe's run takes on this device; nothing is fetched from elsewhere.

    Args:
        device: as ``load`` takes it.
        keep: whether the images are kept.

    Raises:
        DiffESError: the weights that are here do not fit the recipe.
    """
    missing = list[str]()
    measures = _measures(recipe.metrics, device or default_device(), missing)
    _note(recipe, missing)
    if at_hand(recipe.model.weights):
        basis, cost = Basis.TIMED, _timed(recipe, device, measures)
    else:
        missing.append(f"the weights of {recipe.model.weights}, to which a run has to have access")
        if recipe.model.denoiser is None:
            return Price(Basis.NOTHING, None, None, None, tuple(missing))
        basis, cost = Basis.COUNTED, _counted(recipe, recipe.model.denoiser, device, measures)
    images = recipe.images.count * (1 + len(recipe.results))
    batches = -(-recipe.images.count // recipe.images.batch) * (1 + len(recipe.results))
    disk = images * (cost.scores + (3 * cost.pixels if keep else 0))
    return Price(basis, batches * (cost.sampling + cost.judging), cost.memory, disk, tuple(missing))


def _measures(metrics: Sequence[Metric], device: torch.device | str, missing: list[str]) -> Measures:
    """Those that can be had here."""
    usable = list[Opened]()
    for metric in metrics:
        try:
            usable.append(opened_metric(metric, device, local_only=True))
        except DiffESError as error:
            missing.append(str(error))
    return measures_of(usable)


def _note(recipe: Recipe, missing: list[str]) -> None:
    """What else the run reads."""
    try:
        if recipe.images.prompts is not None:
            read_prompts(Path(recipe.images.prompts))
    except DiffESError as error:
        missing.append(str(error))
    for named in recipe.results:
        try:
            load_result(named.folder, named.point)
        except DiffESError as error:
            missing.append(str(error))


def _timed(recipe: Recipe, device: str | None, measures: Measures) -> _Cost:
    """One batch in one step and in two, from noise to images, and its scores."""
    pipe, own = pipeline_of(recipe, device, local_only=True), recipe.sampling
    probes = make_probes(pipe, own.batch, 0, "price")
    prompts = tuple(str(probe.condition) for probe in probes)

    def made(steps: int, count: int) -> tuple[float, Made]:
        began = time.perf_counter()
        latents = sample(pipe, probes[:count], replace(own, num_inference_steps=steps))
        images = decode(pipe, latents)  # on the CPU, so all is done
        return time.perf_counter() - began, Made(latents, images, prompts[:count])

    made(1, 1)  # for what is only done once
    (one, result), (two, _) = made(1, own.batch), made(2, own.batch)
    judging, scores = _judged(measures, result)
    sampling = one + max(0.0, two - one) * (own.steps - 1)
    return _Cost(sampling, judging, peak_memory(device_of(denoiser_of(pipe))), scores, result.images[0, 0].numel())


def _counted(recipe: Recipe, published: Part, device: str | None, measures: Measures) -> _Cost:
    """The denoiser's calls for a batch, from its published size; images of noise, and their scores."""
    denoiser, own = without_weights(published.name, published.settings), recipe.sampling
    call = call_without_pipeline(denoiser, own)
    macs = MacCounter(denoiser, anatomy_of(denoiser), call).dense() * own.steps * own.batch
    dtype = getattr(torch, recipe.setting.dtype.value)
    sides = [side or SHRINKS * denoiser.config.sample_size for side in (own.height, own.width)]
    images = torch.rand(2, 3, *sides)
    judging, scores = _judged(measures, Made(images, images, ("a tile",) * 2))
    memory = sum(weight.numel() for weight in denoiser.parameters()) * dtype.itemsize
    place = default_device() if device is None else torch.device(device)
    return _Cost(macs * _seconds_of_one(place, dtype), judging * own.batch / 2, memory, scores, sides[0] * sides[1])


def _judged(measures: Measures, made: Made) -> tuple[float, int]:
    """Seconds that it takes to judge some images, and bytes of the scores of one."""
    began = time.perf_counter()
    scores = judge(measures, made, made)
    return time.perf_counter() - began, sum(score.nbytes for score in scores.values()) // len(made.images)


def _seconds_of_one(device: torch.device, dtype: torch.dtype) -> float:
    """Of a multiply-add in the product of two large matrices."""
    one = torch.randn(_SIDE, _SIDE, device=device).to(dtype)
    torch.mm(one, one)
    return min(nanoseconds(device, lambda: torch.mm(one, one)) for _ in range(_ROUNDS)) / 1e9 / _SIDE**3
