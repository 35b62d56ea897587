"""What the flags of ``diff-es compress`` come to: the library's defaults, each field by its flag, and its help."""

from __future__ import annotations

import io
import re
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any

import pytest
import typer

from diff_es import Budget, DiffESError, Distribution, Effort, Settings, with_effort
from diff_es.cli.app import app, main
from diff_es.cli.compress import settings_of
from diff_es.cli.compress_options import BudgetOptions, MachineOptions, PruningOptions, SearchOptions, WeightOptions
from diff_es.cli.executor_options import ExecutorOptions
from diff_es.cli.grouped import grouped
from diff_es.cli.options import SamplingOptions
from diff_es.compression.effort import SIZES, sizes_of

COMMANDS: dict[str, Any] = vars(typer.main.get_command(app))["commands"]
CHANGES: dict[str, tuple[str, ...]] = {  # flags, and the fields that they change, and no others
    "--num-inference-steps 30": ("settings.sampling.num_inference_steps",),
    "--guidance-scale 2.5": ("settings.sampling.guidance_scale",),
    "--batch 3": ("settings.sampling.batch",),
    "--negative-prompt blurred": ("settings.sampling.negative_prompt",),
    "--height 64": ("settings.sampling.height",),
    "--width 64": ("settings.sampling.width",),
    "--num-frames 9": ("settings.sampling.num_frames",),
    "--prompts PROMPTS": ("settings.prompts",),
    "--macs 0.5": ("budget.compute.ratio",),
    "--speedup 1.4": ("budget.compute",),
    "--weights-gb 3": ("budget.memory",),
    "--front 0.3,0.5": ("settings.front",),
    "--levers prune": ("settings.levers",),
    "--stages 4": ("settings.stages",),
    "--measure psnr": ("settings.measure",),
    "--features tests.helpers.features:colours --measure blend": ("settings.measure",),
    "--search-noises 21": ("settings.search_noises",),
    "--first-rung 0": ("settings.first_rung",),
    "--sensitivity-noises 7": ("settings.sensitivity_noises",),
    "--sensitivity-levels 7": ("settings.sensitivity_levels",),
    "--effort quick": tuple(
        f"settings.{name}" for name in SIZES if sizes_of(Effort.QUICK)[name] != sizes_of(Effort.STANDARD)[name]
    ),
    "--generations 7": ("settings.generations",),
    "--population 7": ("settings.population",),
    "--survivors 7": ("settings.survivors",),
    "--crossover 0.7": ("settings.crossover",),
    "--switches 7": ("settings.switches",),
    "--timestep-generations 7": ("settings.timestep_generations",),
    "--timestep-offspring 7": ("settings.timestep_offspring",),
    "--finalists 7": ("settings.finalists",),
    "--held-out-noises 7": ("settings.held_out_noises",),
    "--reference-multiple 7": ("settings.reference_multiple",),
    "--corrections 2": ("settings.corrections",),
    "--seed 7": ("settings.seed",),
    "--prune depth": ("settings.method.ladder",),
    "--prune width,depth": ("settings.method.ladder.depth",),
    "--units kind": ("settings.method.granularity",),
    "--levels 5": ("settings.method.ladder.levels",),
    "--multiple 16": ("settings.method.ladder.multiple",),
    "--ranking wanda": ("settings.method.ranking",),
    "--calibration-samples 7": ("settings.calibration_samples",),
    "--no-compensate": ("settings.method.compensation",),
    "--damping 0.5": ("settings.method.ranking.damping", "settings.method.compensation.damping"),
    "--no-stagewise": ("settings.method.stagewise",),
    "--shared-order": ("settings.method.shared_order",),
}
WITHOUT_FLAG = {  # and why
    "settings.method.ladder.dense": "measured on the device, and written into the result",
    "settings.method.ranking.rounds": "only how often a factorisation is renewed: more is slower, not better",
    "settings.method.compensation.intercept": "for ablations, from Python",
}
NO_SETTING = {"--scheduler", "--table", "--hours"}  # of these groups: of the pipeline, and of the run


@dataclass(frozen=True)
class Said:
    """What the library is asked for."""

    settings: Settings
    budget: Budget


def said(*line: str) -> Said:
    """By a command of the same groups of options."""
    heard, own = list[Said](), typer.Typer(pretty_exceptions_enable=False)

    @own.command()
    @grouped
    def command(
        sampling: SamplingOptions,
        budget: BudgetOptions,
        search: SearchOptions,
        pruning: PruningOptions,
        weights: WeightOptions,
        executor: ExecutorOptions,
        machine: MachineOptions,
    ) -> None:
        heard.append(Said(settings_of(sampling, budget, search, pruning), budget.asked()))

    typer.main.get_command(own).main([*line], standalone_mode=False)
    return heard[0]


def leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Every field at any depth, by its path; of an object its class too."""
    yield path, type(value) if is_dataclass(value) else value
    for one in fields(value) if is_dataclass(value) else ():
        yield from leaves(getattr(value, one.name), f"{path}.{one.name}".lstrip("."))


def changed(line: str) -> set[str]:
    """The fields that a command line changes, as deep as they are in both."""
    usual, now = dict(leaves(said())), dict(leaves(said(*line.split())))
    return {path for path in usual.keys() & now.keys() if usual[path] != now[path]}


def test_an_effort_sets_the_sizes_that_are_not_given() -> None:
    found = said("--generations", "7", "--effort", "thorough", "--first-rung", "20").settings
    assert (found.generations, found.search_noises, found.first_rung) == (7, 32, 20)
    assert found == replace(with_effort(Settings(), Effort.THOROUGH), generations=7, first_rung=20)
    with pytest.raises(DiffESError, match="--hours: expected one of --effort and --hours, found both"):
        said("--effort", "quick", "--hours", "2")


def test_features_are_of_the_measures_that_have_some() -> None:
    named = "tests.helpers.features:colours"
    assert said("--measure", "distribution", "--features", named).settings.measure == Distribution(named)
    with pytest.raises(DiffESError, match="--features: expected a measure of features, found snr"):
        said("--features", named)


def test_the_help_says_what_sizes_are_without_an_effort() -> None:
    told = {option.name: option.help for option in COMMANDS["compress"].params}
    for name, count in sizes_of(Effort.STANDARD).items():
        assert told[name].endswith(f"default {count}."), name
        assert getattr(Settings(), name) == count, "the standard effort is the default of the library"


@pytest.fixture
def prompts(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("prompts") / "prompts.txt"
    path.write_text("a fox\na hat\n")
    return str(path)


def test_no_flags_are_the_defaults_of_the_library() -> None:
    assert said() == Said(Settings(), Budget())


@pytest.mark.parametrize("line", CHANGES)
def test_a_flag_changes_its_field_alone(line: str, prompts: str) -> None:
    assert changed(line.replace("PROMPTS", prompts)) >= set(CHANGES[line])
    for path in changed(line.replace("PROMPTS", prompts)):
        assert path.startswith(CHANGES[line]), path


def test_every_field_has_a_flag_or_a_reason_to_have_none() -> None:
    usual = {path for path, value in leaves(said()) if not isinstance(value, type)}
    reached = {path for paths in CHANGES.values() for path in paths}
    unreached = {path for path in usual if not any(path == one or path.startswith(f"{one}.") for one in reached)}
    deep = {path for path in usual if path.count(".") > 2}  # of a choice, whose parts a flag need not name one by one
    assert unreached - deep == set()
    named = {path for path in deep if path not in reached}
    assert named == set(WITHOUT_FLAG)


def test_every_flag_is_known_here() -> None:
    groups = (SamplingOptions, BudgetOptions, SearchOptions, PruningOptions)
    names = {one.name for group in groups for one in fields(group)}
    flags = {flag for option in COMMANDS["compress"].params if option.name in names for flag in option.opts}
    given = {line.split()[0].replace("--no-", "--") for line in CHANGES}
    short = {"--steps", "--guidance", "--frames"}  # of the same options
    assert given == flags - NO_SETTING - short
    for long, brief in (("num-inference-steps 9", "steps 9"), ("guidance-scale 2", "guidance 2")):
        assert said(f"--{long.split()[0]}", long.split()[1]) == said(f"--{brief.split()[0]}", brief.split()[1])


# -------------------------------------------------------------------------------------------------------------- help


def help_of(command: str, columns: int, monkeypatch: pytest.MonkeyPatch, encoding: str = "utf-8") -> str:
    shown = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setattr(sys, "argv", ["diff-es", command, "--help"])
    monkeypatch.setattr(sys, "stdout", shown)
    with pytest.raises(SystemExit) as ended:
        main()
    assert not ended.value.code
    shown.flush()
    return shown.buffer.getvalue().decode(encoding)


@pytest.mark.parametrize("columns", [40, 80, 200])
def test_the_help_of_compress_has_a_section_for_each_group(columns: int, monkeypatch: pytest.MonkeyPatch) -> None:
    shown = help_of("compress", columns, monkeypatch)
    titles = [line.removesuffix(":") for line in shown.splitlines() if line.endswith(":") and not line.startswith(" ")]
    groups = (
        SamplingOptions,
        BudgetOptions,
        SearchOptions,
        PruningOptions,
        WeightOptions,
        ExecutorOptions,
        MachineOptions,
    )
    assert titles == ["Arguments", "Options", *(vars(group)["title"] for group in groups)]
    for option in COMMANDS["compress"].params:
        names = option.opts if option.opts[0].startswith("-") else [str(option.name)]
        assert all(re.search(rf"^  .*(?<!\S){name}(?![\w-])", shown, re.MULTILINE) for name in names), names


@pytest.mark.parametrize("command", sorted(COMMANDS))
def test_help_is_whole_on_a_narrow_terminal_and_in_ascii(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, narrow = help_of(command, 80, monkeypatch), help_of(command, 40, monkeypatch, "ascii")
    assert whole.isascii()
    for shown, columns in ((whole, 80), (narrow, 40)):
        assert max(map(len, shown.splitlines())) <= columns
    assert Counter(filter(str.isalnum, narrow)) == Counter(filter(str.isalnum, whole))
    told = narrow[narrow.index("Options:") :].splitlines()
    assert max(len(line) - len(line.lstrip()) for line in told) < 10  # never a column of a word or two
