"""The architecture law: a module imports from lower layers only, and few modules know diffusers."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from graphlib import TopologicalSorter
from importlib.metadata import PackageNotFoundError, requires
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

PACKAGE = Path(__file__).parents[1] / "src" / "diff_es"
LAYERS = (  # low to high; a name is a module or a folder directly under src/diff_es
    {"errors", "checking", "arguments", "limits", "rng", "schedule", "trajectory", "metrics", "progress", "multistep"}
    | {"exchange"},
    {"locks", "store", "journal", "scratch", "signals", "told"},
    {"pool", "ending"},
    {"layers", "tiles", "pruned_transformer", "clock", "conditioning", "heap", "quiet", "denoiser", "own_sampler"},
    {"pipeline", "model_index", "checkpoint", "hub", "single_file", "loading"}
    | {"samplers", "arithmetic", "chosen", "stepping", "published", "units", "supported"},
    {"finite", "obs", "calibrate", "lowrank", "measures", "library", "prefix", "recall"},
    {"search", "alike", "cost", "latency", "baselines", "placements", "packing", "compaction"},
    {"route", "fitness", "budget"},
    {"settings"},
    {"own_settings"},
    {"manifest"},
    {"artefact", "benchmark", "report"},
    {"survey"},
    {"study"},
    {"judge"},
    {"sensitivity"},
    {"driving", "final"},
    {"searching"},
    {"compress", "export"},
    {"evaluate", "inspection"},
    {"story", "tables", "demo", "options"},
    {"console"},
    {"commands"},
    {"cli", "__init__", "__main__"},
)
LEVEL = {unit: level for level, units in enumerate(LAYERS) for unit in units}
SELF_CONTAINED = {"search", "report", "pruned_transformer"}
KNOW_DIFFUSERS = {"layers", "conditioning", "pipeline", "checkpoint", "hub", "loading", "samplers", "chosen"}
KNOW_DIFFUSERS |= {"published", "pruned_transformer", "supported", "denoiser", "quiet"}


def imported(path: Path) -> Iterator[str]:
    """Absolute dotted names that a file imports, at any depth, under ``TYPE_CHECKING`` too."""
    package = ("diff_es", *path.relative_to(PACKAGE).parent.parts)
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"), str(path))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) + 1 - node.level] if node.level else ()
            base = ".".join([*above, *filter(None, [node.module])])
            yield from (f"{base}.{alias.name}" for alias in node.names)


def imports_by_unit() -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    for path in PACKAGE.rglob("*.py"):
        unit = path.relative_to(PACKAGE).with_suffix("").parts[0]
        found.setdefault(unit, set()).update(imported(path))
    return found


IMPORTS = imports_by_unit()


def units_imported_by(unit: str) -> set[str]:
    """The other units that a unit imports; a name that is no module is taken from ``__init__``."""
    parts = [name.split(".") for name in IMPORTS[unit]]
    names = {(part[1:] or ["__init__"])[0] for part in parts if part[0] == "diff_es"}
    return {name if name in LEVEL or name in IMPORTS else "__init__" for name in names} - {unit}


def units_that_import(library: str) -> set[str]:
    return {unit for unit, names in IMPORTS.items() if any(name.split(".")[0] == library for name in names)}


def test_every_module_has_a_layer():
    assert sorted(IMPORTS.keys() - LEVEL.keys()) == [], "give these modules a place in LAYERS"


def test_imports_point_down():
    upward = [
        f"{unit} imports {other}"
        for unit in sorted(IMPORTS.keys() & LEVEL.keys())
        for other in sorted(units_imported_by(unit))
        if LEVEL.get(other, -1) > LEVEL[unit]
    ]
    assert upward == []


def test_imports_have_no_cycle():
    TopologicalSorter({unit: units_imported_by(unit) for unit in IMPORTS}).prepare()


@pytest.mark.parametrize("unit", sorted(SELF_CONTAINED & IMPORTS.keys()))
def test_self_contained(unit):
    assert sorted(units_imported_by(unit)) == []


def test_few_modules_know_diffusers():
    assert sorted(units_that_import("diffusers") - KNOW_DIFFUSERS) == []


def test_no_module_imports_torchvision():
    assert units_that_import("torchvision") == set()


def test_importing_the_package_leaves_torchvision_alone():
    code = "import sys; from diff_es import *; print('torchvision' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert (done.stdout.strip(), done.returncode) == ("False", 0), done.stderr


def test_no_dependency_requires_torchvision():
    """Follows requirements, without extras but those asked for, through everything installed."""
    seen: set[tuple[str, str]] = set()
    todo = [("diff-es", extra) for extra in ("", "text", "dev")]
    while todo:
        name, extra = todo.pop()
        if (name, extra) in seen:
            continue
        seen.add((name, extra))
        try:
            lines = requires(name) or []
        except PackageNotFoundError:  # an extra that is not installed here
            continue
        for requirement in map(Requirement, lines):
            if requirement.marker is None or requirement.marker.evaluate({"extra": extra}):
                todo += [(canonicalize_name(requirement.name), extra) for extra in ("", *requirement.extras)]
    assert "torchvision" not in {name for name, _ in seen}
