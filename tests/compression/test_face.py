"""What a user of the library sees: defaults from the pipeline, summaries, the hub, results switched on and off."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tests.helpers.pipelines import CASES, made
from tests.helpers.tiny import assert_same, images, snapshot, tiny

import diff_es
from diff_es import ArtefactError, BudgetOutOfReach, Compressed, DiffESError, Levers, Sampling, StorageError
from diff_es.compression.report import SearchReport
from diff_es.compression.summary import summary
from diff_es.pruning.budget import Budget, MacsRatio, Speedup, WeightMemory
from diff_es.trajectory.corrections import Corrections


def test_steps_and_guidance_are_by_default_those_of_the_pipelines_own_call() -> None:
    own = Sampling().of(tiny())
    assert (own.steps, own.guidance) == (50, 4.0)
    assert Sampling(7).of(tiny()).steps == 7
    stable = Sampling().of(made(CASES["SD"].make))
    assert (stable.steps, stable.guidance) == (50, 7.5)
    flux = made(CASES["FLUX"].make)
    assert Sampling().of(flux).steps == 28
    with pytest.raises(DiffESError, match="expected a number of steps, found none"):
        _ = Sampling().steps


def test_a_budget_is_said_once() -> None:
    assert Budget.of() == Budget(MacsRatio(0.7)) == Budget.of(0.7) == Budget.of(macs=0.7) == Budget.of(MacsRatio(0.7))
    both = Budget.of(speedup=1.4, weights_gb=3.0)
    assert both == Budget(Speedup(1.4), WeightMemory(3.0)) == Budget.of(both) == Budget.of(Speedup(1.4), weights_gb=3.0)
    assert Budget.from_json(both.to_json()) == both
    for twice in ({"macs": 0.7, "speedup": 1.4}, {"budget": 0.7, "macs": 0.7}, {"budget": Speedup(2.0), "macs": 0.5}):
        with pytest.raises(BudgetOutOfReach, match="expected a share of MACs or a speed-up, found"):
            Budget.of(**twice)
    with pytest.raises(BudgetOutOfReach, match="one limit of memory"):
        Budget.of(both, weights_gb=1.0)


def test_print_counts_directions_and_the_steps_of_the_sampler(fast: Compressed) -> None:
    """However many timesteps each of its steps calls the denoiser at."""
    row, report = (0.5, 0.25), fast.report

    def shown(told: SearchReport, corrections: Corrections = ()) -> str:
        return summary(fast.schedule, fast.plans, corrections, None, fast.origin, told)

    assert "corrected along up to 2 directions" in shown(report, (row, row[:1]))
    calls = tuple(t - half for t in report.timesteps for half in (0, 0.5))
    twice = replace(report, steps=tuple(2 * count for count in report.steps), timesteps=calls)
    assert "6, the user's own" in shown(twice)
    choosing = replace(twice, settings=replace(report.settings, levers=Levers.STEPS))
    assert "12 where the user takes 6" in shown(choosing)


def test_print_says_what_a_result_is(fast: Compressed) -> None:
    lines = str(fast).splitlines()
    assert str(fast) == fast.summary()
    assert lines[0].endswith("a local pipeline (DDIMScheduler, float32)")
    report = fast.report
    for line, shown in zip(
        lines[1:6],
        (
            f"0.6 of the MACs; kept: {report.macs_ratio:.3f} of the MACs",
            "6, the user's own, at guidance 2",
            f"{report.held_out_score:.2f} ± {report.held_out_error:.2f} (LatentSNR)",
            "not measured",
            "MB of stages beside the dense model's",
        ),
        strict=True,
    ):
        assert shown in line
    table = [line.split() for line in lines[lines.index("") + 2 :]]
    assert table == [
        [str(stage), f"{report.timesteps[2 * stage]:g}", "2", str(level)]
        for stage, (level,) in enumerate(fast.schedule.levels)
    ]


def test_a_result_is_switched_on_and_off_by_the_pipeline_alone(fast: Compressed, tmp_path: Path) -> None:
    fast.save_pretrained(tmp_path / "fast")
    pipe = tiny()
    before, dense = snapshot(pipe.transformer), images(pipe)
    with fast.routed(tiny()) as other:
        wanted = images(other)
    again = diff_es.enable(pipe, tmp_path / "fast")
    assert again.report == fast.report
    assert torch.equal(images(pipe), wanted)
    with pytest.raises(DiffESError, match="expected a dense pipeline"):
        diff_es.enable(pipe, tmp_path / "fast")
    diff_es.disable(pipe)
    assert torch.equal(images(pipe), dense)
    assert_same(before, snapshot(pipe.transformer))
    with pytest.raises(DiffESError, match="expected a pipeline with a result enabled, found a dense one"):
        diff_es.disable(pipe)


class Client:
    """Takes what the hub's client is asked for and keeps it; nothing is sent."""

    def __init__(self, failure: Exception | None = None) -> None:
        self.made: list[tuple[str, bool | None]] = []
        self.files: dict[str, bytes] = {}
        self.failure = failure

    def create_repo(self, repo_id: str, *, private: bool | None, exist_ok: bool) -> object:
        assert exist_ok
        self.made.append((repo_id, private))
        return None

    def upload_folder(self, *, repo_id: str, folder_path: Path, commit_message: str) -> object:
        if self.failure:
            raise self.failure
        self.files = {path.name: path.read_bytes() for path in folder_path.iterdir()}
        return None


def test_what_is_uploaded_is_the_result_and_its_card(fast: Compressed, tmp_path: Path) -> None:
    client = Client()
    fast.push_to_hub("me/fast", private=True, client=client)
    assert client.made == [("me/fast", True)]
    card = client.files.pop("README.md").decode()
    assert fast.summary() in card
    assert card.startswith("---\nlibrary_name: diff-es\n")
    assert 'diff_es.enable(pipe, "me/fast")' in card
    for name, data in client.files.items():
        (tmp_path / name).write_bytes(data)
    assert Compressed.from_pretrained(tmp_path).report == fast.report
    with pytest.raises(StorageError, match="hub: me/fast: expected an upload, found no network"):
        fast.push_to_hub("me/fast", client=Client(OSError("no network")))


def test_where_the_base_model_lies_is_nobodys_business(fast: Compressed, tmp_path: Path) -> None:
    client, origin = Client(), fast.origin
    assert origin is not None
    local = replace(origin, model="/home/me/models/secret", config="/home/me/configuration")
    point = replace(fast, origin=local)
    replace(point, others=(point,)).push_to_hub("me/fast", client=client)
    assert not [name for name, data in client.files.items() if b"/home/me" in data]
    for name, data in client.files.items():
        (tmp_path / name).write_bytes(data)
    assert Compressed.from_pretrained(tmp_path).origin == replace(origin, model="", config=None)
    public = replace(origin, model="someone/model", config="someone/other")
    assert public.told() == public


def test_what_is_no_result_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ArtefactError, match="expected a result, found"):
        Compressed.from_pretrained("nobody/nothing-of-this-name")  # the tests are offline
