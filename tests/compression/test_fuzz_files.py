"""Damaged and edited files: whatever is wrong with one, it is refused in our words, soon, and with little memory."""

from __future__ import annotations

import json
import random
import shutil
import traceback
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tests.helpers.mutations import (
    Hung,
    alter_artefact,
    alter_journal,
    edit,
    hashed_anew,
    in_child,
    limited,
    peak_mb,
    put_right,
)
from tests.helpers.tiny import joint, settings, tiny

from diff_es import Compressed, DiffESError, Run, Settings, compress, load
from diff_es.compression.compress import began_with
from diff_es.compression.evaluator import Evaluator
from diff_es.compression.reopening import asked_again, found_again
from diff_es.compression.settings import describe, restore
from diff_es.compression.starts import starts
from diff_es.compression.store import MANIFEST
from diff_es.compression.study import Study, prepare
from diff_es.compression.survey import as_measured, identity
from diff_es.pruning.budget import Prices
from diff_es.routing.placements import Compact
from diff_es.scoring.journal import Journal, Scale

ARTEFACTS, JOURNALS, TABLES = 1000, 200, 200


STEPS: Settings = joint(
    sensitivity_noises=1,
    calibration_samples=2,
    search_noises=2,
    held_out_noises=1,
    generations=1,
    population=2,
    timestep_generations=1,
    finalists=1,
    survivors=1,
)


FORMAT3 = Path(__file__).parents[1] / "data" / "format3"
EARLIER = ("levels", "steps-and-levels")


@pytest.fixture(scope="module")
def of_steps() -> Study:
    return prepare(tiny(), STEPS)


@pytest.fixture(scope="module")
def ready(study: Study, of_steps: Study) -> dict[str, Study]:
    """What each artefact was found on."""
    earlier = {name: prepare(tiny(), load(FORMAT3 / name).report.settings) for name in EARLIER}
    return {"width": study, "compact": study, "joint": of_steps, **earlier}


@pytest.fixture(scope="module")
def saved(fast: Compressed, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of artefacts: of levels, of steps with another budget's result beside it, and of low-rank factors; and
    some of format 3."""
    folder = tmp_path_factory.mktemp("saved")
    fast.save(folder / "width")
    compress(tiny(), 0.6, replace(STEPS, front=(0.8,))).save(folder / "joint")
    few = settings(generations=1, population=2, finalists=1)
    compress(tiny(), 0.6, few, run=Run(placement=Compact(0.3))).save(folder / "compact")
    assert any((folder / "compact").glob("factors.*"))
    for name in EARLIER:
        shutil.copytree(FORMAT3 / name, folder / name)
        manifest = json.loads((folder / name / MANIFEST).read_text())
        for point in manifest["points"]:
            point["about"]["sensitivity"]["of"] |= identity(tiny())  # on the libraries of today
        hashed_anew(folder / name, manifest, tied=True)
    return folder


def read_all(folder: Path, ready: Study) -> None:
    """Everything that is ever read of an artefact."""
    fast = load(folder)
    report, origin = fast.report, fast.origin
    found_again(report)
    asked_again(fast, ready.pipe)
    assert restore(describe(report.settings)) == report.settings
    as_measured(ready.settings, report.settings.method)
    if origin is not None:
        assert origin.scheduler["_class_name"]
        assert origin.dtype
    assert fast.summary()
    table = report.sensitivity.checked(ready, str(folder))
    starts(ready, [ready.costs.space(0.7)], table, Evaluator(ready, Journal(None, {}, resume=False)))


def tried(count: int, attempt: Callable[[random.Random], str]) -> Counter[str]:
    """Every attempt in a process of their own: how many were refused, and by what kind; nothing else may happen."""

    def work() -> dict[str, Any]:
        before, outcomes, raw = peak_mb(), Counter[str](), list[str]()
        for seed in range(count):
            kind = "nothing"
            try:
                with limited():
                    kind = attempt(random.Random(seed))
                outcomes[f"{kind} accepted"] += 1
            except DiffESError:
                outcomes["refused"] += 1
            except (Exception, Hung):
                raw.append(f"seed {seed}: {traceback.format_exc()[-600:]}")
        return {"raw": raw, "outcomes": outcomes, "beyond": peak_mb() - before}

    found = in_child(work)
    assert found["raw"] == [], f"{len(found['raw'])} of {count}: " + "\n".join(found["raw"][:5])
    assert found["beyond"] < 100
    return Counter(found["outcomes"])


@pytest.mark.slow
def test_a_damaged_or_edited_artefact_is_refused(saved: Path, ready: dict[str, Study], tmp_path: Path) -> None:
    for name, own in ready.items():
        read_all(saved / name, own)

    def attempt(rng: random.Random) -> str:
        name, work = rng.choice(sorted(ready)), tmp_path / "work"
        shutil.rmtree(work, ignore_errors=True)
        shutil.copytree(saved / name, work)
        kind = alter_artefact(work, rng)
        read_all(work, ready[name])
        return kind

    outcomes = tried(ARTEFACTS, attempt)
    assert outcomes["refused"] > ARTEFACTS / 2
    assert outcomes["bytes accepted"] <= 2  # such as a byte added after the manifest's last line
    assert outcomes["place accepted"] == 0


@pytest.mark.slow
def test_a_damaged_or_edited_table_is_refused(saved: Path, ready: dict[str, Study], tmp_path: Path) -> None:
    def attempt(rng: random.Random) -> str:
        name, work = rng.choice(["width", "joint", *EARLIER]), tmp_path / "work"
        shutil.rmtree(work, ignore_errors=True)
        shutil.copytree(saved / name, work)
        manifest = json.loads((work / MANIFEST).read_text())
        part = rng.choice(["sensitivity", "settings"])
        edit(manifest["points"][manifest["chosen"]]["about" if name in EARLIER else "report"][part], rng)
        put_right(work, manifest, rng)
        read_all(work, ready[name])
        return part

    assert tried(TABLES, attempt)["refused"] > TABLES / 2


@pytest.mark.usefixtures("fast")
def test_no_change_of_a_journal_changes_a_score(finished_journal: Path, study: Study, tmp_path: Path) -> None:
    """What is read is a part of what was written, or the journal is refused."""
    facts = Journal.began_with(finished_journal)
    options = [[1000, *range(900, 900 - len(row) + 1, -1)] for row in study.costs.options]
    facts["prices"] = {"fixed": 10, "options": options, "other": 0.5}
    whole = Journal(finished_journal, Journal.began_with(finished_journal), resume=True).known
    path = tmp_path / "whole.jsonl"
    first = Journal(path, facts, resume=False)
    for scale, scores in whole.items():
        for candidate, score in scores.items():
            first.add(candidate, score, scale)
    assert sum(map(len, whole.values())) > 15

    def attempt(rng: random.Random) -> str:
        work = tmp_path / "work"
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir()
        shutil.copy(path, work / "other.jsonl")
        shutil.copy(path, work / "journal.jsonl")
        kind = alter_journal(work / "journal.jsonl", rng)
        before = began_with(work / "journal.jsonl")
        if before is not None:
            as_measured(study.settings, before.method)
            if before.prices is not None:
                Prices.restored(before.prices, study.costs)
        again = Journal(work / "journal.jsonl", facts, resume=True)
        for scale in Scale:
            assert again.known[scale].items() <= whole[scale].items()
        return kind

    outcomes = tried(JOURNALS, attempt)
    assert outcomes["line accepted"] > 0
    assert outcomes["bytes accepted"] > 0
