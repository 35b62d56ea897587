"""Puts what a demo found into the README and the documentation: the picture, the table of the first screen, and all
rows with how they were made.

    make readme

runs the demo from nothing and then this.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from textwrap import fill
from typing import Annotated

from common import header_of, line, options

from diff_es.evaluation.demo import PICTURE
from diff_es.evaluation.report.data import CONTENDERS, Row, is_number
from diff_es.utils.files import write_text

SHOWN = {  # in the README: what it is called there
    "diff-es": "**Diff-ES**: steps and pruning",
    "pruning": "Diff-ES, pruning alone (the paper's search)",
    "trailing": "trailing steps, corrected",
    "fewer-steps": "fewer steps",
    "uniform": "uniform pruning",
    "mosaicdiff": "MosaicDiff-like pruning",
    "random": "random search of steps and levels",
}


@dataclass(frozen=True)
class Options:
    demo: Annotated[Path, "folder of a finished demo"] = Path("demo")
    into: Annotated[Path, "root of the repository whose README and documentation are written"] = Path()


def first_screen(rows: list[Row]) -> str:
    """A row for each rival, and for each budget the closeness and the measured speed-up."""
    budgets = sorted({row.budget for row in rows if row.contender != "dense"}, reverse=True)
    at = {(row.contender, row.budget): row for row in rows}
    cells = [f"at {budget:g} of the MACs" for budget in budgets]
    lines = [header_of("closeness in dB, and measured speed-up", *cells)]
    for name, shown in SHOWN.items():
        found = [at.get((name, budget)) for budget in budgets]
        if any(found):
            cells = ["–" if row is None else f"{decibels(row.snr_db)} dB, {row.sped()}" for row in found]
            lines.append(
                line(f"{shown}{drawn(found)}", *([f"**{cell}**" for cell in cells] if name == "diff-es" else cells))
            )
    return "\n".join(lines)


def whole(rows: list[Row]) -> str:
    """All that was measured of every contender."""
    columns = ("contender", "budget", "steps", "MACs", "speed-up", "SNR dB", "to own", "PSNR dB", "Fréchet")
    lines = [header_of(*columns)]
    for row in rows:
        spent = (f"{row.budget:g}", str(row.steps), f"{row.macs_ratio:.3f}", row.sped())
        close = (decibels(row.snr_db), decibels(row.own_snr_db), decibels(row.psnr_db))
        distance = f"{row.frechet_distance:.2f}" if is_number(row.frechet_distance) else "–"
        lines.append(line(f"{CONTENDERS[row.contender].name}{drawn([row])}", *spent, *close, distance))
    return "\n".join(lines)


def drawn(rows: Sequence[Row | None]) -> str:
    """Of how many schedules random search has the best, behind its name; nothing behind others'."""
    counts = {str(row.tried) for row in rows if row is not None and row.contender == "random" and row.tried}
    return f", best of {' and '.join(sorted(counts))}" if counts else ""


def decibels(value: float | None) -> str:
    return f"{value:.1f}" if is_number(value) else "–"


def replaced(text: str, block: str) -> str:
    """A document with this between the two comments that mark what a demo fills in.

    Raises:
        ValueError: it has no such comments.
    """
    found, count = re.subn(r"(?s)(<!-- demo -->\n).*?(<!-- /demo -->)", lambda m: f"{m[1]}{block}\n{m[2]}", text)
    if count != 1:
        raise ValueError(f"README.md: expected one <!-- demo --> ... <!-- /demo -->, found {count}. Put them in.")
    return found


def main(chosen: Options) -> None:
    found = json.loads((chosen.demo / "result.json").read_text())
    rows, facts = [Row(**row) for row in found["rows"]], found["facts"]
    commit = subprocess.check_output(["git", "rev-parse", "--short=8", "HEAD"], cwd=Path(__file__).parent, text=True)
    recorded, dense = f"commit `{commit.strip()}`", next(row for row in rows if row.contender == "dense")
    said = (
        "Mean SNR of the final latent to the finely stepped dense model "
        f"({facts['Reference'].removeprefix('the dense model at ')}, same noise), at equal compute; the dense model's "
        f"own {dense.steps} steps are at {decibels(dense.snr_db)} dB (`make demo` at {recorded}, seed {facts['Seed']}, "
        f"{facts['Device']}):"
    )
    readme = chosen.into / "README.md"
    write_text(readme, replaced(readme.read_text(), f"{fill(said, 120)}\n\n{first_screen(rows)}"))
    shutil.copyfile(chosen.demo / PICTURE, chosen.into / "docs" / PICTURE)
    settings = "\n".join([header_of("", ""), *(line(*pair) for pair in facts.items())])
    intro = f"# The demo\n\nRecorded at {recorded}.\n\n    make readme\n\n"
    meaning = (
        'SNR and PSNR are to the reference, "to own" is the SNR to the dense model\'s own steps; the Fréchet distance '
        "is to real tiles, and lower is closer.\n\n"
    )
    write_text(chosen.into / "docs/tables/demo.md", f"{intro}{meaning}{whole(rows)}\n\n{settings}\n")
    print(f"Written: README.md, docs/{PICTURE}, docs/tables/demo.md.")


if __name__ == "__main__":
    main(options(Options, __doc__))
