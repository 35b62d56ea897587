"""What the benchmarks share: typed options, tables, means with their error, lines of results, and a plain search."""

from __future__ import annotations

import argparse
import json
import math
import statistics
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from types import NoneType
from typing import Annotated, Any, TypeAlias, TypeVar, get_args, get_origin, get_type_hints

from torch import Tensor

from diff_es import Levers, Method, Sampling, Settings, Width
from diff_es.compression.evaluator import Evaluator
from diff_es.compression.evolve import evolve
from diff_es.compression.final import Found
from diff_es.compression.sensitivity import sensitivity
from diff_es.compression.study import Study
from diff_es.evaluation.rivals import Contender, scheduled
from diff_es.evaluation.sampling import sampled
from diff_es.scoring.journal import Journal
from diff_es.scoring.metrics import snr_db
from diff_es.scoring.timing import Runner
from diff_es.utils.progress import Reporter

Model: TypeAlias = Annotated[str, "one of the bundled models, or a folder or name to load"]
Noises: TypeAlias = Annotated[int, "held-out noises"]
Seed: TypeAlias = Annotated[int, "of every random draw"]
Seeds: TypeAlias = Annotated[tuple[int, ...], "one run for each"]
Steps: TypeAlias = Annotated[int, "of the sampler: the user's own"]
Guidance: TypeAlias = Annotated[float, "as the pipeline understands it"]
StageCount: TypeAlias = Annotated[int, "that the trajectory is cut into"]
CalibrationSamples: TypeAlias = Annotated[int, "samples of the calibration"]
SearchNoises: TypeAlias = Annotated[int, "noises that candidates are judged on"]
HeldOutNoises: TypeAlias = Annotated[int, "noises of the search's own final"]
Population: TypeAlias = Annotated[int, "candidates of a generation"]
Generations: TypeAlias = Annotated[int, "of the search"]
Rounds: TypeAlias = Annotated[int, "in which all are timed, one after the other"]
Budgets: TypeAlias = Annotated[tuple[float, ...], "shares of the dense trajectory's MACs"]
ResultsFile: TypeAlias = Annotated[Path, "file of JSON lines that results are added to"]

Options = TypeVar("Options")


def options(kind: type[Options], description: str | None) -> Options:
    """The command line as an object of a dataclass, whose fields are the flags.

    A field is ``Annotated`` with its help, and then with what there is to choose from, unless its type says so. A tuple
    takes one value or more, or none where that is its default.
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    hints = get_type_hints(kind, include_extras=True)
    for field in fields(kind):  # type: ignore[arg-type]
        hint, text, *offered = get_args(hints[field.name])
        flag, default = _flag(field.name), field.default
        if hint is bool:
            parser.add_argument(flag, action="store_true", help=text)
            continue
        several = get_origin(hint) is tuple
        inner, *_ = (one for one in get_args(hint) or (hint,) if one is not NoneType)
        count = ("+" if default else "*") if several else None
        choices = offered[0] if offered else None
        parser.add_argument(flag, type=inner, nargs=count, choices=choices, default=default, help=text)
    told = vars(parser.parse_args())
    return kind(**{name: tuple(value) if isinstance(value, list) else value for name, value in told.items()})


def in_its_own_process(script: str, asked: object) -> str:
    """What a script prints for these options, an object as :func:`options` makes."""
    command = [sys.executable, script]
    for name, value in vars(asked).items():
        if isinstance(value, bool) or value is None:
            command += [_flag(name)] if value else []
        else:
            command += [_flag(name), *map(str, value if isinstance(value, tuple) else (value,))]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def header(*columns: str) -> None:
    """The first two lines of a Markdown table, shown at once."""
    print(header_of(*columns), flush=True)


def row(*cells: str) -> None:
    """A line of one, shown at once."""
    print(line(*cells), flush=True)


def header_of(*columns: str) -> str:
    return line(*columns) + "\n" + "|---" * len(columns) + "|"


def line(*cells: str) -> str:
    return "| " + " | ".join(cells) + " |"


def with_error(values: Sequence[float]) -> str:
    """A mean of differences, with its standard error."""
    error = statistics.stdev(values) / len(values) ** 0.5 if len(values) > 1 else math.nan
    return f"{statistics.mean(values):+.2f} ± {error:.2f}"


def half_range(values: Sequence[float]) -> float:
    return (max(values) - min(values)) / 2


def with_range(values: Sequence[float], digits: int) -> str:
    """A mean, with half the range."""
    return f"{statistics.mean(values):.{digits}f} ± {half_range(values):.{digits}f}"


@dataclass(frozen=True)
class Results:
    """Results in a file of JSON lines, to which runs add, one after the other or side by side."""

    path: Path

    def rows(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.path.read_text().splitlines()] if self.path.exists() else []

    def holds(self, key: Mapping[str, object]) -> bool:
        """Whether there is a result of a run that is known by these values."""
        return any(key.items() <= known.items() for known in self.rows())

    def add(self, rows: Iterable[Mapping[str, object]]) -> None:
        """All of a run, in one write: none is ever there in part."""
        with self.path.open("a") as file:
            file.write("".join(json.dumps(row) + "\n" for row in rows))


def untimed(steps: int, guidance: float, levers: Levers | None, seed: int) -> Settings:
    """The defaults but for layers that are found slower when thinned: none is timed, so that runs compare."""
    return Settings(sampling=Sampling(steps, guidance), levers=levers, method=Method(Width(dense=())), seed=seed)


def searched(
    study: Study, budgets: Sequence[float], reporter: Reporter, journal: Journal | None = None
) -> tuple[Found, ...]:
    """What a search in this process finds within each budget; without a journal it cannot be resumed."""
    evaluator = Evaluator(study, journal or Journal(None, {}, resume=False))
    return evolve(study, budgets, evaluator, sensitivity(study, evaluator, reporter), reporter)


def by_study(study: Study, found: Found) -> Contender:
    """What a search found, as the study's own library makes it."""
    return scheduled(study, "found", found.limit, found.candidate, None if found.corrected else ())


class Closeness:
    """Of what contenders give to what a study compares with, the dense model's own steps or finer ones: mean SNR in dB
    on noises that no search has seen."""

    def __init__(self, study: Study, noises: int, reporter: Reporter) -> None:
        self.study, self._noises, self._reporter = study, noises, reporter
        runner = Runner("reference", study.settings.sampling, timesteps=study.reference)
        self._goal, self.images = self._sampled(Contender("reference", 1.0, 1.0, runner))

    def __call__(self, contender: Contender) -> float:
        return self.seen(contender)[0]

    def seen(self, contender: Contender) -> tuple[float, Tensor]:
        """With the images."""
        latents, images = self._sampled(contender)
        return snr(self._goal, latents), images

    def _sampled(self, contender: Contender) -> tuple[Tensor, Tensor]:
        return sampled(self.study, contender, self._noises, self._reporter)


def snr(goal: Tensor, latents: Tensor) -> float:
    """Mean SNR in dB."""
    return float(snr_db(goal, latents).mean())
