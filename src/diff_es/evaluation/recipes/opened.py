"""A recipe with all that it names at hand: the pipeline and its sampler, results beside it, prompts and metrics."""

from __future__ import annotations

import hashlib
import inspect
import json
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from ...compression.result import Compressed
from ...compression.result import load as load_result
from ...compression.store import MANIFEST
from ...execution.shipping import marks_of
from ...pipelines.families import Asked, Condition, Pipeline, Sampling, family_of
from ...pipelines.loading import default_device, load, resampled
from ...pipelines.probes import Probe, conditions_of, read_prompts
from ...pipelines.tracing import first_call
from ...utils.errors import DiffESError
from ...utils.files import digest
from ...utils.seeds import derive_seed
from .measures import Measures, measures_of, opened_metric
from .recipe import Conditions, Part, Recipe, Result

DENSE = "dense"


@dataclass(frozen=True)
class Entrant:
    """The dense model, or a result of it."""

    name: str
    result: Compressed | None
    digest: str  # of what a result consists of
    point: float | None = None  # which of those for several budgets was asked for

    def context(self, pipe: Pipeline) -> AbstractContextManager[object]:
        """Where the pipeline samples this way."""
        return nullcontext() if self.result is None else self.result.routed(pipe)


@dataclass(frozen=True)
class Opened:
    """What a recipe's run needs."""

    recipe: Recipe
    pipe: Pipeline
    contenders: tuple[Entrant, ...]  # the dense model first
    measures: Measures
    conditions: tuple[Condition, ...]

    def probe(self, index: int) -> Probe:
        """Of image ``index``: its noise and what it is asked for, by the seed and the index alone."""
        images = self.recipe.images
        drawn = images.conditions is Conditions.RANDOM
        place = derive_seed(images.seed, "recipe, class", index) if drawn else index
        return Probe(derive_seed(images.seed, "recipe", index), self.conditions[place % len(self.conditions)])

    def batches(self) -> tuple[range, ...]:
        """The numbers of the images that are sampled together."""
        count, size = self.recipe.images.count, self.recipe.images.batch
        return tuple(range(first, min(first + size, count)) for first in range(0, count, size))

    @cached_property
    def identity(self) -> dict[str, object]:
        """All that a batch's scores depend on, as JSON values; the number of images is none of it."""
        recipe = asdict(self.recipe)
        images = {name: value for name, value in recipe["images"].items() if name not in ("count", "prompts")}
        return {
            **marks_of(self.pipe),
            "sampler": _sampler_of(self.pipe),
            "setting": recipe["setting"],
            "images": images,
            "conditions": digest(self.conditions),
            "metrics": recipe["metrics"],
            "results": [[one.name, one.digest, one.point] for one in self.contenders[1:]],
        }


def opened(recipe: Recipe, device: str | None = None) -> Opened:
    """Load all that a recipe names.

    Raises:
        DiffESError: of whichever kind what is missing or does not fit has; the message names it.
    """
    place = device or default_device()
    measures = measures_of([opened_metric(one, place) for one in recipe.metrics])
    prompts = None if recipe.images.prompts is None else read_prompts(Path(recipe.images.prompts))
    pipe = pipeline_of(recipe, device)
    beside = tuple(_contender(recipe, pipe, named) for named in recipe.results)
    names = [DENSE, *(one.name for one in beside)]
    if len(set(names)) < len(names):
        remedy = "Rename one of them, or take another point."
        raise DiffESError("results", expected="folders of different names", found=", ".join(names), remedy=remedy)
    _check_measures(recipe, pipe, measures)
    return Opened(recipe, pipe, (Entrant(DENSE, None, ""), *beside), measures, _conditions(recipe, pipe, prompts))


def pipeline_of(recipe: Recipe, device: str | None = None, *, local_only: bool = False) -> Pipeline:
    """A recipe's pipeline, with its sampler.

    Args:
        device, local_only: as ``load`` takes them.

    Raises:
        UnsupportedModel: nothing loads from there, or diffusers has no such sampler.
        DiffESError: it is of another class, or the sampler has no such settings.
    """
    dtype = getattr(torch, recipe.setting.dtype.value)
    pipe = load(recipe.model.weights, dtype=dtype, device=device, local_only=local_only)
    kind, wanted = type(pipe).__name__, recipe.model.pipeline
    if kind != wanted:
        remedy = "Take other weights, or another recipe."
        raise DiffESError(recipe.model.weights, expected=f"a {wanted}", found=f"a {kind}", remedy=remedy)
    _exchange_sampler(pipe, recipe.sampler)
    return pipe


def _exchange_sampler(pipe: Pipeline, sampler: Part) -> None:
    resampled(pipe, sampler.name, {**pipe.scheduler.config, **sampler.settings})
    known = inspect.signature(type(pipe.scheduler).__init__).parameters
    if unknown := [name for name in sampler.settings if name not in known]:
        expected = f"settings of a {sampler.name}"
        remedy = f"It has {', '.join(list(known)[1:])}."
        raise DiffESError("sampler.settings", expected=expected, found=", ".join(unknown), remedy=remedy)


def _sampler_of(pipe: Pipeline) -> dict[str, object]:
    """All that it is made with, of the recipe and of the model's own; without what diffusers keeps for itself."""
    settings = json.loads(pipe.scheduler.to_json_string())
    own = {name: value for name, value in settings.items() if not name.startswith("_")}
    return {"name": type(pipe.scheduler).__name__, "settings": own}


def _contender(recipe: Recipe, pipe: Pipeline, named: Result) -> Entrant:
    result = load_result(named.folder, named.point)
    result.check(pipe)
    _check_setting(pipe, result.sampling.of(pipe), recipe.sampling, named.folder)
    made = hashlib.sha256((Path(named.folder) / MANIFEST).read_bytes()).hexdigest()
    alone = replace(result, others=())  # who judges it needs no other point of its front
    return Entrant(named.name, alone, made, named.point)


def _check_setting(pipe: Pipeline, made: Sampling, asked: Sampling, where: str) -> None:
    """Whether a result was made for the recipe's setting, to which its levels and corrections belong."""
    family = family_of(pipe)
    assert family is not None, "checked when it was loaded"
    pairs: dict[str, tuple[object, object]] = {"steps": (made.steps, asked.steps)}
    if family.asked is not Asked.NOTHING:
        pairs["guidance"] = made.guidance, asked.guidance
    pairs["negative prompt"] = made.negative_prompt, asked.negative_prompt
    if not _of_one_size(pipe, made, asked):
        pairs |= {"height": (made.height, asked.height), "width": (made.width, asked.width)}
    for name, (own, wanted) in pairs.items():
        if own != wanted:
            shown, other = ("the pipeline's own" if value is None else repr(value) for value in (wanted, own))
            found, remedy = f"one that was made for {other}", "Compress for the setting of the recipe."
            raise DiffESError(where, expected=f"a result for the {name} {shown}", found=found, remedy=remedy)


def _of_one_size(pipe: Pipeline, one: Sampling, other: Sampling) -> bool:
    """Whether images are equally high and wide, for which the pipeline's own size may be said or left out."""
    sides = (one.height, other.height), (one.width, other.width)
    if not all(a == b or None in (a, b) for a, b in sides):
        return False
    if all(a == b for a, b in sides):
        return True
    resized = replace(other, batch=1), replace(other, batch=1, height=one.height, width=one.width)
    first, second = (tree_leaves(first_call(pipe, sampling)) for sampling in resized)
    return len(first) == len(second) and all(map(_equal, first, second))


def _equal(one: object, other: object) -> bool:
    return torch.equal(one, other) if isinstance(one, Tensor) and isinstance(other, Tensor) else one == other


def _conditions(recipe: Recipe, pipe: Pipeline, prompts: Sequence[str] | None) -> tuple[Condition, ...]:
    """What can be asked of the pipeline, as the recipe wants it."""
    asked = {
        Conditions.BALANCED: Asked.CLASSES,
        Conditions.RANDOM: Asked.CLASSES,
        Conditions.PROMPTS: Asked.PROMPTS,
        Conditions.NOTHING: Asked.NOTHING,
    }
    family, wanted = family_of(pipe), recipe.images.conditions
    assert family is not None, "checked when it was loaded"
    if family.asked is not asked[wanted]:
        found, remedy = f"{wanted.value} for a {type(pipe).__name__}", "Correct it."
        expected = f"conditions of a pipeline that is asked for {family.asked.value}"
        raise DiffESError("images.conditions", expected=expected, found=found, remedy=remedy)
    return conditions_of(pipe, prompts)


def _check_measures(recipe: Recipe, pipe: Pipeline, measures: Measures) -> None:
    """Whether the metrics have what they compare with."""
    family = family_of(pipe)
    assert family is not None, "checked when it was loaded"
    if measures.of_text and family.asked is not Asked.PROMPTS:
        found, remedy = f"{', '.join(measures.of_text)} for a {type(pipe).__name__}", "Leave it out."
        raise DiffESError("metrics", expected="none of text for a pipeline without", found=found, remedy=remedy)
    if not (recipe.results or measures.of_set or measures.of_text):
        remedy = "Name a result too, or a metric of the dense model's images alone."
        names = ", ".join((*measures.of_latents, *measures.of_images))
        raise DiffESError("metrics", expected="something to compare with the dense model", found=names, remedy=remedy)
