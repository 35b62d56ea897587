"""The architecture law: a room imports from lower ones only, modules are short, and few know diffusers."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from graphlib import TopologicalSorter
from importlib.metadata import PackageNotFoundError, metadata, requires
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from diff_es.utils.errors import Extra

PACKAGE = Path(__file__).parents[1] / "src" / "diff_es"
LAYERS = (  # of rooms, low to high; a room imports from lower layers only
    {"utils", "search"},
    {"trajectory", "layers"},
    {"pipelines"},
    {"routing", "solvers", "execution"},
    {"pruning"},
    {"scoring"},
    {"compression"},
    {"evaluation"},
    {"cli"},
    {"__init__", "__main__"},
)
LEVEL = {room: level for level, rooms in enumerate(LAYERS) for room in rooms}
SELF_CONTAINED = {"search", "evaluation/report", "compression/pruned_transformer"}
KNOW_DIFFUSERS = {
    *("layers", "pipelines", "solvers", "compression/pruned_transformer"),
    *("evaluation/rivals/solvers", "evaluation/rivals/caches"),
}
LONGEST, LONGEST_FUNCTION, MOST_PARAMETERS = 300, 60, 8
"""Lines of a module and of a function, and parameters of a function outside of the command line, fewer than the first
two."""


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


def rooms_in(paths: Iterator[Path]) -> dict[str, set[str]]:
    """What each room imports; a file at the top is a room of its own."""
    found: dict[str, set[str]] = {}
    for path in paths:
        room = path.relative_to(PACKAGE).with_suffix("").parts[0]
        found.setdefault(room, set()).update(imported(path))
    return found


IMPORTS = rooms_in(PACKAGE.rglob("*.py"))


def rooms_imported_by(room: str) -> set[str]:
    """The other rooms that a room imports; a name that is none is taken from ``__init__``."""
    parts = [name.split(".") for name in IMPORTS[room]]
    names = {(part[1:] or ["__init__"])[0] for part in parts if part[0] == "diff_es"}
    return {name if name in LEVEL or name in IMPORTS else "__init__" for name in names} - {room}


def modules_that_import(library: str) -> set[str]:
    paths = [path for path in PACKAGE.rglob("*.py") if any(n.split(".")[0] == library for n in imported(path))]
    return {path.relative_to(PACKAGE).with_suffix("").as_posix() for path in paths}


def test_every_room_has_a_layer():
    assert sorted(IMPORTS.keys() - LEVEL.keys()) == [], "give these rooms a place in LAYERS"
    assert len(list(PACKAGE.iterdir())) <= 19  # with the bundled models, the prompts, py.typed and two files


def test_imports_point_down():
    wrong = [
        f"{room} imports {other}"
        for room in sorted(IMPORTS.keys() & LEVEL.keys())
        for other in sorted(rooms_imported_by(room))
        if LEVEL.get(other, -1) >= LEVEL[room]
    ]
    assert wrong == []


def modules() -> dict[str, set[str]]:
    """Every module by its dotted name, with those of the package that it imports."""
    paths = {".".join(("diff_es", *p.relative_to(PACKAGE).with_suffix("").parts)): p for p in PACKAGE.rglob("*.py")}
    names = {name.removesuffix(".__init__"): path for name, path in paths.items()}
    found: dict[str, set[str]] = {}
    for name, path in names.items():
        taken = {part if part in names else part.rpartition(".")[0] for part in imported(path)}
        found[name] = (taken & names.keys()) - {name, "diff_es"}
    return found


def test_modules_have_no_cycle():
    TopologicalSorter({name: others for name, others in modules().items() if name != "diff_es"}).prepare()


@pytest.mark.parametrize("place", sorted(SELF_CONTAINED))
def test_self_contained(place):
    prefix = "diff_es." + place.replace("/", ".")
    for name, others in modules().items():
        if name == prefix or name.startswith(f"{prefix}."):
            assert [other for other in sorted(others) if not other.startswith(prefix)] == [], name


def test_few_modules_know_diffusers():
    known = modules_that_import("diffusers")
    assert [name for name in sorted(known) if not name.startswith(tuple(KNOW_DIFFUSERS))] == []


def test_modules_and_functions_are_short():
    long = list[str]()
    for path in sorted(PACKAGE.rglob("*.py")):
        text, name = path.read_text(encoding="utf-8"), path.relative_to(PACKAGE).as_posix()
        if (lines := len(text.splitlines())) >= LONGEST:
            long.append(f"{name}: {lines} lines")
        for node in ast.walk(ast.parse(text)):
            if not isinstance(node, ast.FunctionDef):
                continue
            if (lines := (node.end_lineno or 0) - node.lineno + 1) >= LONGEST_FUNCTION:
                long.append(f"{name}, {node.name}: {lines} lines")
            given = [a.arg for a in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)]
            if len(set(given) - {"self", "cls"}) > MOST_PARAMETERS and not name.startswith("cli/"):
                long.append(f"{name}, {node.name}: {len(given)} parameters")
    assert long == []


def test_every_room_says_what_it_holds():
    for room in sorted(path for path in PACKAGE.iterdir() if (path / "__init__.py").exists()):
        assert ast.get_docstring(ast.parse((room / "__init__.py").read_text(encoding="utf-8"))), room.name


def test_no_module_imports_torchvision():
    assert modules_that_import("torchvision") == set()


def test_importing_the_package_leaves_torchvision_alone():
    code = "import sys; from diff_es import *; print('torchvision' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert (done.stdout.strip(), done.returncode) == ("False", 0), done.stderr


def test_no_dependency_requires_torchvision():
    """Follows requirements, without extras but those asked for, through everything installed."""
    seen: set[tuple[str, str]] = set()
    todo = [("diff-es", extra) for extra in ("", *Extra, "dev")]
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


def test_what_a_message_says_to_install_can_be_installed():
    assert set(metadata("diff-es").get_all("Provides-Extra") or ()) == {*Extra, "dev", "docs"}
