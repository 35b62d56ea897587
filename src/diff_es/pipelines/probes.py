"""The fixed noises and conditions that everything is calibrated and judged on."""

from __future__ import annotations

from codecs import BOM_UTF8
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from ..utils.errors import DiffESError
from ..utils.seeds import derive_seed
from .families import Asked, Condition, Pipeline, classes_of, family_of
from .own_sampler import OwnSampler


@dataclass(frozen=True)
class Probe:
    """A fixed noise and class or prompt on which the dense model and a candidate are compared."""

    seed: int
    condition: Condition


@cache
def bundled_prompts() -> tuple[str, ...]:
    """The prompts that text pipelines are calibrated and judged on unless they bring their own or others are given."""
    return read_prompts(Path(__file__).parents[1] / "prompts.txt")


def read_prompts(file: Path) -> tuple[str, ...]:
    """The prompts of a text file in UTF-8, one on each line; empty lines are none, nor is a byte-order mark.

    Raises:
        DiffESError: the file cannot be read, is in another encoding, or holds no prompt.
    """
    expected = "prompts, one on each line"
    try:
        lines = file.read_bytes().removeprefix(BOM_UTF8).splitlines()
    except OSError as error:
        found, remedy = str(error), "Give a text file in UTF-8."
        raise DiffESError(str(file), expected=expected, found=found, remedy=remedy) from error
    prompts = tuple(filter(None, (_prompt(file, number, line) for number, line in enumerate(lines, 1))))
    if not prompts:
        raise DiffESError(str(file), expected=expected, found="none", remedy="Write some into it.")
    return prompts


def _prompt(file: Path, number: int, line: bytes) -> str:
    try:
        if b"\0" in line:  # as text in UTF-16 has them
            raise ValueError("a zero byte")
        return line.decode("utf-8").strip()
    except ValueError as error:
        found, remedy = f"another encoding: {error}", "Save the file as UTF-8."
        raise DiffESError(f"{file}, line {number}", expected="text in UTF-8", found=found, remedy=remedy) from error


def own_prompts(pipe: Pipeline) -> tuple[str, ...]:
    """Those of the ``prompts.txt`` in the folder that a pipeline was loaded from, else the bundled ones."""
    source = pipe.config.get("_name_or_path")
    file = Path(source, "prompts.txt") if source else None
    return read_prompts(file) if file is not None and file.is_file() else bundled_prompts()


def conditions_of(pipe: Pipeline, prompts: Sequence[str] | None = None) -> tuple[Condition, ...]:
    """What can be asked of a pipeline: its classes, ``prompts`` (None: :func:`own_prompts`), or nothing.

    Raises:
        DiffESError: prompts for a pipeline that takes none, or an empty list of them.
    """
    family = family_of(pipe)
    if family is not None and family.asked is Asked.PROMPTS:
        if prompts is not None and not prompts:
            raise DiffESError("prompts", expected="at least one", found="none", remedy="Leave them out for ours.")
        return tuple(own_prompts(pipe) if prompts is None else prompts)
    if isinstance(pipe, OwnSampler) and prompts is None:
        return tuple(pipe.conditions) or (None,)
    if prompts is not None:
        found, remedy = f"{len(prompts)} for a {type(pipe).__name__}", "Leave them out."
        raise DiffESError("prompts", expected="none for a pipeline without text", found=found, remedy=remedy)
    return (None,) if family is not None and family.asked is Asked.NOTHING else classes_of(pipe)


def name_of(pipe: Pipeline, condition: Condition) -> str:
    """A condition for a reader: a class by its names, where it has some, or a prompt; empty where nothing is asked."""
    family = family_of(pipe)
    if isinstance(condition, int) and family is not None and family.asked is Asked.CLASSES:
        return ", ".join(name for name, number in pipe.labels.items() if number == condition) or f"class {condition}"
    return "" if condition is None else str(condition)


def make_probes(
    pipe: Pipeline, count: int, seed: int, purpose: str, prompts: Sequence[str] | None = None
) -> tuple[Probe, ...]:
    """``count`` probes; classes or prompts are dealt round robin, or drawn where there are more than 32.

    Probes of different purposes never share a noise; the first n of a larger set are the set of size n. Raises as
    :func:`conditions_of` does.
    """
    conditions, probes = conditions_of(pipe, prompts), list[Probe]()
    for i in range(count):
        draw = derive_seed(seed, purpose, i)
        index = i if len(conditions) <= 32 else draw
        probes.append(Probe(draw, conditions[index % len(conditions)]))
    return tuple(probes)
