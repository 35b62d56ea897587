"""What an evaluation is, as a file: weights, sampler, images, metrics and the figures that others have published."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, ClassVar

from pydantic import AllowInfNan, BeforeValidator, ConfigDict, Field, Strict, TypeAdapter

from ...pipelines.families import Sampling
from ...utils.arguments import LISTED, Text, checked, named
from ...utils.checking import validated
from ...utils.errors import DiffESError
from ...utils.files import check_size
from ...utils.limits import Batch, Count, Guidance, Pixels, Seed, Speedup, Steps

RUNS = Path(__file__).parent / "runs"
"""The recipes that ship with the package."""
_KNOWN = ConfigDict(extra="forbid")
_MOST_BYTES = 1 << 20


class Dtype(StrEnum):
    """Arithmetic of the pipeline."""

    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"
    FLOAT16 = "float16"


class Conditions(StrEnum):
    """What image i is asked for."""

    BALANCED = "balanced classes"  # class i modulo their number
    RANDOM = "random classes"  # drawn with repetition, as ADM's figures are made
    PROMPTS = "prompts"  # prompt i modulo their number
    NOTHING = "nothing"  # of pipelines that ask for nothing


@checked()
@dataclass(frozen=True)
class Part:
    """A class of diffusers by its name, and what it is made with besides what is at hand."""

    __pydantic_config__: ClassVar = _KNOWN

    name: Text
    settings: Mapping[str, Any] = field(default_factory=dict)


@checked()
@dataclass(frozen=True)
class Model:
    """Weights, and the class of the pipeline that they have to come as."""

    __pydantic_config__: ClassVar = _KNOWN

    weights: Text  # as ``pipelines.loading.load`` takes them
    pipeline: Text
    denoiser: Part | None = None  # its published size, which prices a run where the weights are not at hand


@checked()
@dataclass(frozen=True)
class Setting:
    """How each image is sampled."""

    __pydantic_config__: ClassVar = _KNOWN

    steps: Steps
    guidance: Guidance
    dtype: Annotated[Dtype, named(Dtype)]
    height: Pixels | None = None  # None: the pipeline's own
    width: Pixels | None = None
    negative_prompt: Text | None = None


@checked()
@dataclass(frozen=True)
class Images:
    """Which images there are: each has a noise of its own, by the seed and its number alone."""

    __pydantic_config__: ClassVar = _KNOWN

    count: Count
    batch: Batch
    conditions: Annotated[Conditions, named(Conditions)]
    seed: Seed = 0
    prompts: Text | None = None  # a text file of them; None: those of the model


@checked()
@dataclass(frozen=True)
class Metric:
    """What the images are judged by."""

    __pydantic_config__: ClassVar = _KNOWN

    name: Text  # one of ``measures.KNOWN``
    reference: Text | None = None  # of those beside real images: a reference batch of ADM, or a folder of images
    weights: Text | None = None  # of its network; None: where they lie when they were fetched the usual way


@checked()
@dataclass(frozen=True)
class Result:
    """What is judged beside the dense model."""

    __pydantic_config__: ClassVar = _KNOWN

    folder: Text
    point: Speedup | None = None  # of results for several budgets, as ``compression.result.load`` takes it

    @property
    def name(self) -> str:
        """By which its figures are told."""
        own = Path(self.folder).resolve().name
        return own if self.point is None else f"{own}@{self.point:.9g}"


def _result(value: object) -> object:
    return Result(value) if isinstance(value, str) else value


@checked()
@dataclass(frozen=True)
class Figure:
    """What somebody has published of the dense model."""

    __pydantic_config__: ClassVar = _KNOWN

    metric: Text
    value: Annotated[float, Strict(), AllowInfNan(False)]
    source: Text


@checked()
@dataclass(frozen=True)
class Recipe:
    """An evaluation."""

    __pydantic_config__: ClassVar = _KNOWN

    title: Text
    model: Model
    sampler: Part
    setting: Setting
    images: Images
    metrics: Annotated[tuple[Metric, ...], LISTED, Field(min_length=1)]
    results: Annotated[tuple[Annotated[Result, BeforeValidator(_result)], ...], LISTED] = ()  # a folder's name will do
    published: Annotated[tuple[Figure, ...], LISTED] = ()

    @property
    def sampling(self) -> Sampling:
        """As pipelines are called."""
        own = self.setting
        sizes = own.height, own.width
        return Sampling(own.steps, own.guidance, self.images.batch, own.negative_prompt, *sizes)


_RECIPE = TypeAdapter(Recipe)
_REMEDY = "docs/recipes.md says what a recipe holds; those that ship with the package are examples."


def shipped() -> tuple[str, ...]:
    """The names of the recipes that ship with the package."""
    return tuple(sorted(path.stem for path in RUNS.glob("*.toml")))


def read_recipe(name: str) -> Recipe:
    """A recipe that ships with the package, by its name, or one from a file of one's own.

    Raises:
        DiffESError: there is none of this name, it is no TOML, or an entry is missing, unknown or of another kind; the
            message names it.
    """
    path = RUNS / f"{name}.toml" if name in shipped() else Path(name)
    try:
        check_size(path, _MOST_BYTES)
        found = tomllib.loads(path.read_bytes().decode())
    except (OSError, ValueError, RecursionError) as error:
        expected, remedy = "a recipe in TOML", f"Give a file, or one of {', '.join(shipped())}."
        raise DiffESError(f"recipe {name}", expected=expected, found=str(error), remedy=remedy) from error
    return validated(_RECIPE, found, f"recipe {name}", _REMEDY)
