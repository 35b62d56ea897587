"""``diff-es evaluate --recipe``: an evaluation that a file describes, priced or run."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, ClassVar

import typer

from ..evaluation.evaluate import Extent
from ..evaluation.recipes.opened import opened
from ..evaluation.recipes.price import price
from ..evaluation.recipes.recipe import Recipe, Result, read_recipe
from ..evaluation.recipes.run import PICTURES, run_recipe
from ..evaluation.recipes.shards import RESULT
from ..utils.errors import DiffESError
from ..utils.files import check_outputs
from ..utils.progress import Reporter
from . import tables
from .console import finish, out
from .executor_options import ExecutorOptions


@dataclass(frozen=True)
class ExtentOptions:
    """How much the comparison with the baselines runs."""

    title: ClassVar = "Without a recipe"

    noises: Annotated[int | None, typer.Option(help="Held-out noises for SNR and PSNR; default 64.")] = None
    images: Annotated[
        int | None, typer.Option(min=128, help="Images for the Frechet distance, where it can be had; default 256.")
    ] = None
    rounds: Annotated[int | None, typer.Option(help="Timed rounds; default 5.")] = None
    batch: Annotated[int | None, typer.Option(help="Samples per timed pipeline call; default 32.")] = None
    random: Annotated[int | None, typer.Option(help="Candidates of random search; default as many as ours.")] = None

    @property
    def said(self) -> dict[str, int]:
        """Those that were given."""
        return {name: value for name, value in asdict(self).items() if value is not None}

    def extent(self) -> Extent:
        """As the library takes it."""
        return Extent(**{"images": 256, **self.said})


@dataclass(frozen=True)
class RecipeOptions:
    """An evaluation by a recipe."""

    title: ClassVar = "By a recipe"

    recipe: Annotated[
        str | None,
        typer.Option(help="A recipe that ships with the package, by its name, or a file; DIR is then judged by it."),
    ] = None
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what it would take, and end.")] = False
    count: Annotated[int | None, typer.Option(help="Images; default the recipe's.")] = None
    keep_images: Annotated[bool, typer.Option("--keep-images", help="Keep every image as a PNG file.")] = False

    def asked(
        self, folder: Path | None, point: float | None, model: str | None, extent: ExtentOptions
    ) -> Recipe | None:
        """The recipe with what is said instead; None: there is none.

        Raises:
            DiffESError: neither a recipe nor a result, or what only one of them has without it.
        """
        if self.recipe is None:
            given = {"--dry-run": self.dry_run, "--count": self.count is not None, "--keep-images": self.keep_images}
            for name in (option for option, said in given.items() if said):
                raise DiffESError(name, expected="a recipe", found="none", remedy="Add --recipe, or leave it out.")
            if folder is None:
                remedy = "Say DIR, what `diff-es compress` wrote, or --recipe."
                raise DiffESError("DIR", expected="a result, or a recipe", found="neither", remedy=remedy)
            return None
        for name in extent.said:
            remedy = "Leave it out: a recipe says what is run. Or leave --recipe out."
            raise DiffESError(f"--{name}", expected="no recipe", found=self.recipe, remedy=remedy)
        if point is not None and folder is None:
            remedy = "Say DIR, what `diff-es compress` wrote, or leave it out."
            raise DiffESError("--point", expected="a result", found="none", remedy=remedy)
        found = read_recipe(self.recipe)
        if self.count is not None:
            found = replace(found, images=replace(found.images, count=self.count))
        if model is not None:
            found = replace(found, model=replace(found.model, weights=model))
        return found if folder is None else replace(found, results=(*found.results, Result(str(folder), point)))


def evaluate_recipe(
    recipe: Recipe,
    options: RecipeOptions,
    who: ExecutorOptions,
    out_folder: Path | None,
    device: str | None,
    *,
    as_json: bool,
) -> None:
    """Price a recipe, or run it and print what it came to beside what was published."""
    if options.dry_run:
        found = price(recipe, device, keep=options.keep_images)
        tables.show_price(out, recipe.title, found)
        finish(found.to_json(), as_json)
        return
    assert options.recipe is not None, "there is a recipe"
    executor, folder = who.chosen(), out_folder or Path(f"evaluation-{Path(options.recipe).stem}")
    check_outputs(folder, RESULT)
    ready, reporter = opened(recipe, device), Reporter()
    outcome = run_recipe(ready, folder, reporter, executor, keep=options.keep_images)
    tables.show_outcome(out, outcome)
    kept = f"; the images in {folder / PICTURES}" if options.keep_images else ""
    out.print(f"\nFigures in {folder / RESULT}{kept}.")
    finish({**outcome.to_json(), **reporter.figures}, as_json)
