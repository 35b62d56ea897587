"""Every argument of every public function and setting, found by looking: what it is not meant to be is refused by name,
before anything is calibrated; what it may be is taken, or refused in our words."""

from __future__ import annotations

import inspect
import math
import random
import re
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import fields, replace
from decimal import Decimal
from enum import Enum
from fractions import Fraction
from functools import cache
from numbers import Real
from pathlib import Path, PurePath
from types import NoneType, UnionType
from typing import Annotated, Any, TypeVar, Union, get_args, get_origin, get_type_hints

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline
from tests.helpers.tiny import settings, tiny
from torch import nn

import diff_es
from diff_es import (
    Budget,
    Channels,
    Compressed,
    Depth,
    DiffESError,
    Exported,
    Forecast,
    Front,
    Granularity,
    Heads,
    ImagePSNR,
    Levers,
    Obs,
    Reporter,
    Resident,
    Residual,
    Sampling,
    Settings,
    Width,
)
from diff_es.cli.options import Images, Trials
from diff_es.evaluation.evaluate import Extent
from diff_es.evaluation.inspection import inspect as inspected
from diff_es.pipelines.sampling import DiffusersPipeline
from diff_es.routing.placements import Stitched
from diff_es.utils.arguments import Place

OUTPUTS = (Compressed, Exported, Forecast, Front)  # nobody makes one
DECLARED = (Channels, Heads, Residual, diff_es.declare, diff_es.separate_attention)
"""Tried out on the denoiser that they are of, and refused in the words of that: ``tests/test_declared_wrong.py``."""
OTHERS = (Budget.of, Extent, Images, Trials, Stitched, inspected)
METHODS = (Compressed.routed, Compressed.apply, Compressed.remove, Compressed.check, Compressed.save)
VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1, 3, 0.5, 1.5, -0.5, 10**20, -(10**20), 10**5000, 1e20, 1e300, -1e300),
    *(math.nan, math.inf, -math.inf, 1 + 2j, Decimal("0.5"), Fraction(1, 2), Fraction(10**400, 3)),
    *(np.int64(3), np.int8(-1), np.float32(0.5), np.float64("nan"), np.bool_(True), np.array([1, 2]), np.longdouble(1)),
    *("", "abacus", "7", "0.5", "prune", "whole", "\0", "\ud800", "x" * 5000, b"prune", Path("x" * 5000), Path("a\0b")),
    *([], [0.5], ["a"], [None], (), (2,), ("a", 1), (("a", 1),), ((1, "a"),), {}, {"steps": 3}, {1}, range(3)),
    *(object(), object, Obs, Obs(), ImagePSNR, ImagePSNR(), Width, Width(), Depth(), Sampling(), Levers.PRUNE),
    *(
        Granularity.WHOLE,
        Resident,
        Resident(),
        Stitched(),
        Reporter,
        torch.tensor(1),
        torch.float32,
        nn.Linear(1, 1),
        len,
    ),
)


def public() -> Iterator[Callable[..., Any]]:
    for name in diff_es.__all__:
        found = getattr(diff_es, name)
        if found not in DECLARED and not (
            isinstance(found, type) and issubclass(found, (BaseException, Enum, *OUTPUTS))
        ):
            yield found
    yield from (*OTHERS, *METHODS)


OF_COMPRESS = (Settings, Sampling)
LONG = {"settings", "sampling", "speedup", "timed"}  # whatever is taken there may take its time
SMALL: dict[str, Any] = {
    "calibration_samples": 1,
    "search_noises": 1,
    "held_out_noises": 1,
    "finalists": 1,
    "population": 1,
}
SMALL |= {"generations": 1, "stages": 2, "sampling": Sampling(3, 1.0, 1)}
SEARCHING = ("compress", "forecast", "within_hours")
CALLS = {found.__qualname__: found for found in public()}


@cache
def hints(name: str) -> dict[str, Any]:
    """The type of every parameter; of ``compress`` those of its settings as well."""
    called: Any = CALLS[name]
    made = vars(called)["__init__"] if isinstance(called, type) else called
    found = get_type_hints(made, include_extras=True)
    named = inspect.signature(called).parameters.values()
    taken = {one.name: found[one.name] for one in named if one.name != "self" and one.kind is not one.VAR_KEYWORD}
    for kind in OF_COMPRESS if name == "compress" else ():
        taken |= {field.name: get_type_hints(kind, include_extras=True)[field.name] for field in fields(kind)}
    return taken


def with_settings(taken: dict[str, Any]) -> dict[str, Any]:
    """Arguments of ``compress``, those of its settings put into these."""
    own, sampling = ({one.name: taken[one.name] for one in fields(kind) if one.name in taken} for kind in OF_COMPRESS)
    if not own and not sampling:
        return taken
    chosen = taken.get("settings") or settings()
    if sampling:
        chosen = replace(chosen, sampling=replace(chosen.sampling, **sampling))
    rest = {name: value for name, value in taken.items() if name not in (*own, *sampling)}
    return {**rest, "settings": replace(chosen, **own)}


def meant(hint: Any, value: Any) -> bool:
    """Whether a value is of a kind that a parameter is meant to have, whatever its bounds."""
    if hint == Place and isinstance(value, str | PurePath) and "\0" in str(value):
        return False
    origin, inner = get_origin(hint), get_args(hint)
    if origin is Annotated:
        return meant(inner[0], value)
    if origin in (Union, UnionType):
        return any(meant(part, value) for part in inner)
    if origin is Callable:
        return callable(value)
    if origin is Sequence:
        listed = value.tolist() if isinstance(value, torch.Tensor | np.ndarray) else value
        return isinstance(listed, list | tuple | range) and all(meant(inner[0], one) for one in listed)
    if origin is tuple:
        if not isinstance(value, list | tuple):
            return False
        kinds = [inner[0]] * len(value) if inner[1:] == (...,) else inner
        return len(kinds) == len(value) and all(map(meant, kinds, value))
    if hint in (int, float):
        whole = isinstance(value, Real) and not isinstance(value, bool) and -1e19 < value < 1e19  # type: ignore[operator]
        return whole and (hint is float or value == int(value))
    if isinstance(hint, TypeVar):
        return meant(hint.__bound__, value)
    if hint is DiffusersPipeline:
        return isinstance(value, DiffusionPipeline)
    if isinstance(hint, type) and issubclass(hint, Enum):
        return isinstance(value, hint) or value in [member.value for member in hint if isinstance(value, str)]
    if hint is str or hint is PurePath or hint is Path:
        return isinstance(value, hint) and "\ud800" not in str(value)
    return isinstance(value, NoneType if hint is None else hint)


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What has no default."""
    folder, pipe = tmp_path_factory.mktemp("calls"), tiny()
    needed: dict[str, Any] = {"pipe": pipe, "folder": folder / "new", "budget": Budget(), "settings": settings()}
    needed |= {"count": 2, "seed": 0, "steps": None, "guidance_scale": None}
    needed |= {"batch": (2,), "rounds": 1, "effort": 0.5, "hours": 1.0}
    return needed | {"times": 1.5, "gigabytes": 3.0, "denoiser": pipe.transformer, "sample": looped, "noise": (4, 8, 8)}


def looped(denoiser: nn.Module, noise: torch.Tensor) -> torch.Tensor:
    """A loop of no step."""
    return noise


def call(name: str, given: dict[str, Any], fast: Compressed, chosen: dict[str, Any]) -> None:
    """With these arguments; nothing but ours may be raised."""
    called, taken = CALLS[name], dict(chosen)
    for one in inspect.signature(called).parameters.values():
        if one.name in ("self", "result"):
            taken.setdefault(one.name, fast)
        elif one.default is one.empty and one.kind is not one.VAR_KEYWORD:
            taken.setdefault(one.name, given[one.name])
    positional = [taken.pop("self")] if "self" in taken else []
    if name == "compress":
        taken = with_settings(taken)
    found = called(*positional, **taken)
    if name == "Routable.routed":
        with found:
            pass
    elif name in ("Routable.apply", "enable"):
        fast.remove(taken["pipe"])


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Names that are drawn are of this folder."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def nothing_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise AssertionError("calibration began")

    monkeypatch.setattr("diff_es.compression.study.calibrate", refuse)


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.usefixtures("nothing_runs")
def test_what_an_argument_is_not_meant_to_be_is_refused_by_name(
    name: str, given: dict[str, Any], fast: Compressed
) -> None:
    for parameter, hint in hints(name).items():
        for value in VALUES:
            if not meant(hint, value):
                try:
                    call(name, given, fast, {parameter: value})
                except DiffESError as error:
                    said = str(error)
                else:
                    said = "nothing"
                assert re.search(rf"\b{parameter}\b.*: expected .*, found .*\. ", said), (parameter, value, said)
    with pytest.raises(DiffESError, match=r"expected .*, found .*mistyped"):
        call(name, given, fast, {"mistyped": 1})


def test_two_hundred_calls_end_well_or_in_our_words(given: dict[str, Any], fast: Compressed, tmp_path: Path) -> None:
    draw, ran, refused = random.Random(17), list[str](), list[str]()
    while len(ran) + len(refused) < 200:
        name = draw.choice([*CALLS, *["compress"] * 2])
        known = hints(name)
        chosen = dict[str, Any]()
        for parameter in draw.sample(sorted(known), min(len(known), draw.choice((1, 2)))):
            fit = [value for value in VALUES if meant(known[parameter], value)] if draw.random() < 0.5 else []
            chosen[parameter] = draw.choice(fit or VALUES)
        if chosen.keys() & LONG or meant(int, chosen.get("workers")):
            continue
        start: dict[str, Any] = {"settings": settings(**SMALL)} if name in SEARCHING else {}
        start |= {"macs": 0.6} if name == "compress" else {}
        began = time.monotonic()
        try:
            call(name, {**given, "folder": tmp_path / "new"}, fast, {**start, **chosen})
        except DiffESError:
            assert time.monotonic() - began < 10, (name, chosen)  # nothing hangs
            refused.append(name)
        else:
            assert all(meant(known[parameter], value) for parameter, value in chosen.items()), (name, chosen)
            ran.append(name)
    assert len(ran) > 20
    assert "compress" in ran
