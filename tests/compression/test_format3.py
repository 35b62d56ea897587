"""Artefacts of format 3, saved when that was the format, load, run and are saved as today's."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from shutil import copytree

import pytest
import torch
from tests.helpers.mutations import put_right
from tests.helpers.tiny import images, tiny
from torch import Tensor

from diff_es import ArtefactError, MacsRatio, Reporter, load
from diff_es.compression.store import MANIFEST
from diff_es.compression.survey import identity, survey

FOLDER = Path(__file__).parents[1] / "data" / "format3"
IMAGES = json.loads((FOLDER / "images.json").read_text())


@pytest.mark.parametrize("name", ["levels", "steps-and-levels"])
def test_gives_the_images_that_it_gave(name: str) -> None:
    fast, pipe = load(FOLDER / name), tiny(layers=3)
    with fast.routed(pipe):
        shown = images(pipe)
    assert [float(one.mean()) for one in shown] == pytest.approx(IMAGES[name]["brightness"], abs=1e-5)
    dense = sha256(images(tiny(layers=3)).contiguous().numpy().tobytes()).hexdigest()
    if dense == IMAGES["dense"]:  # where this processor computes as the one did on which it was saved
        assert sha256(shown.contiguous().numpy().tobytes()).hexdigest() == IMAGES[name]["images"]


@pytest.mark.parametrize("name", ["levels", "steps-and-levels"])
def test_says_what_it_said_and_is_saved_as_today(name: str, tmp_path: Path) -> None:
    fast = load(FOLDER / name)
    said = json.loads((FOLDER / name / MANIFEST).read_text())
    about = said["points"][said["chosen"]]["about"]
    report = fast.report
    assert report.budget.compute == MacsRatio(about["asked"].get("macs", 0.7))
    assert (report.limit, report.score, report.held_out_score) == tuple(
        about[key] for key in ("budget", "score", "held_out_score")
    )
    assert report.finalists[0].candidate.levels == fast.schedule.levels
    assert len(report.finalists) == len(about["finalists"])
    assert fast.origin is not None
    assert fast.origin.scheduler == about["origin"]["scheduler"]
    fast.save(tmp_path / "new")
    again = load(tmp_path / "new")
    assert json.loads((tmp_path / "new" / MANIFEST).read_text())["format"] == 4
    assert (again.report, again.schedule, again.timesteps) == (fast.report, fast.schedule, fast.timesteps)
    assert (again.sampling, again.corrections, again.origin) == (fast.sampling, fast.corrections, fast.origin)
    shown = list[Tensor]()
    for one in (fast, again):
        pipe = tiny(layers=3)
        with one.routed(pipe):
            shown.append(images(pipe))
    assert torch.equal(*shown)
    assert [point.report.limit for point in again.front.points] == [point.report.limit for point in fast.front.points]


@pytest.mark.parametrize("name", ["levels", "steps-and-levels"])
def test_its_sensitivities_serve_another_search(name: str) -> None:
    report = load(FOLDER / name).report
    known = report.sensitivity
    anew = replace(known, of={**known.of, **identity(tiny(layers=3))})  # on the libraries of today
    assert anew.checked(survey(tiny(layers=3), report.settings, Reporter(quiet=True)), name) == known.table


@pytest.mark.parametrize("where", ["budget", "finalists", "sensitivity", "settings", "origin", "steps"])
def test_one_that_was_edited_is_refused_by_name(where: str, tmp_path: Path) -> None:
    folder = tmp_path / "edited"
    copytree(FOLDER / "steps-and-levels", folder)
    manifest = json.loads((folder / MANIFEST).read_text())
    manifest["points"][0]["about"][where] = [[-1]]
    put_right(folder, manifest, random.Random(0))
    with pytest.raises(ArtefactError, match=where):
        load(folder)
