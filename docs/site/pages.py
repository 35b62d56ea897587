"""The pages of the documentation site that are made of other files: the README, the examples, the docstrings."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "src" / "diff_es"
START = {"README.md": "index.md"}
DOCUMENTS = {"CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changelog.md"}
BESIDE = {"src/diff_es/bundled/ARTISTS.md": "artists.md"}
EXAMPLES = {f"examples/{path.name}": f"examples/{path.stem}.md" for path in sorted((ROOT / "examples").glob("*.py"))}
ROOMS = sorted(path.parent.name for path in PACKAGE.glob("*/__init__.py"))
FACE, TABLES = "api/index.md", sorted(f"tables/{path.name}" for path in (ROOT / "docs" / "tables").glob("*.md"))
_LINK = re.compile(r"(?<=\]\()[\w./-]+")


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    config.nav = [
        {"Diff-ES": "index.md"},
        {"Method": "method.md"},
        {"Report and play": "report.md"},
        {"Decisions": "decisions.md"},
        {"Metrics": "metrics.md"},
        {"Recipes": "recipes.md"},
        {"Many machines": "scaling.md"},
        {"Benchmarks": ["benchmarks.md", {"Tables": TABLES}]},
        {"Examples": list(EXAMPLES.values())},
        {"API": [FACE, *({room: f"api/{room}.md"} for room in ROOMS)]},
        {"Project": [*DOCUMENTS.values(), {"Artists": "artists.md"}]},
    ]
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    for name, text in written():
        files.append(File.generated(config, name, content=text))
    return files


def written() -> Iterator[tuple[str, str]]:
    """Where each page stands in the site, and its Markdown."""
    for source, page in {**START, **DOCUMENTS, **BESIDE}.items():
        yield page, relinked((ROOT / source).read_text(encoding="utf-8"))
    for source, page in EXAMPLES.items():
        yield page, f"# {Path(source).name}\n\n```python\n{(ROOT / source).read_text(encoding='utf-8')}```\n"
    yield FACE, "\n\n".join(["# diff_es", *(f"::: diff_es.{name}" for name in face())]) + "\n"
    for room in ROOMS:
        yield f"api/{room}.md", f"# {room}\n\n::: diff_es.{room}\n    options:\n      show_root_heading: false\n"


def relinked(text: str) -> str:
    """With links from the root of the repository as links from the root of the site."""
    pages = {**START, **DOCUMENTS, **BESIDE, **EXAMPLES}
    return _LINK.sub(lambda link: pages.get(link[0], link[0].removeprefix("docs/")), text)


def face() -> list[str]:
    """The names that ``diff_es`` exports, read and not imported, which would take PyTorch."""
    for node in ast.parse((PACKAGE / "__init__.py").read_text(encoding="utf-8")).body:
        match node:
            case ast.Assign(targets=[ast.Name(id="__all__")], value=names):
                return list(ast.literal_eval(names))
    raise ValueError("src/diff_es/__init__.py: expected __all__, found none")
