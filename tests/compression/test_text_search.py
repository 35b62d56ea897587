"""The method on text pipelines: prefixes that are reused, searches bound to their prompts, and the command line."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.helpers.pipelines import CASES, made
from tests.helpers.tiny import joint, settings

from diff_es import DiffESError, Method, Run, Width, compress, load
from diff_es.cli.app import main
from diff_es.compression.reopening import found_again
from diff_es.compression.settings import describe, restore
from diff_es.compression.study import prepare
from diff_es.evaluation.benchmark import compare
from diff_es.evaluation.evaluate import Conduct, Extent, evaluate
from diff_es.layers import Anatomy
from diff_es.pipelines.probes import make_probes
from diff_es.pipelines.sampling import denoiser_of, sample
from diff_es.pipelines.tracing import trace
from diff_es.pruning.granularity import Depth, Granularity
from diff_es.pruning.library import Library
from diff_es.pruning.statistics import Statistics
from diff_es.scoring.fidelity import ImageSSIM, LatentSNR
from diff_es.scoring.fitness import Comparison, Fitness
from diff_es.search import Candidate
from diff_es.solvers.prefix_cache import PrefixCache
from diff_es.solvers.samplers import trajectory
from diff_es.utils.progress import Reporter

QUIET = Reporter(quiet=True)
PROMPTS = ("a fox", "two hats", "a blue door")
METHOD = Method(Width(4, dense=()), granularity=Granularity.KIND)
FEW: dict[str, Any] = {"population": 2, "finalists": 1, "survivors": 1, "held_out_noises": 1}
FEW |= {"calibration_samples": 2, "generations": 1, "stages": 2}
COUNTS = ((2, 2, 1), (2, 4, 1), (2, 2, 4), (1, 0, 3), (2, 4, 2))


@pytest.mark.parametrize(
    ("name", "dtype"),
    [("FLUX", torch.bfloat16), ("Wan", torch.bfloat16), ("Qwen-Image", torch.float32), ("SDXL", torch.float32)],
)
def test_prefixes_are_reused_to_the_bit(name: str, dtype: torch.dtype) -> None:
    """Also where the denoiser receives rounded timesteps, or is called twice a step."""
    case = CASES[name]
    pipe = made(case.make).to(dtype)
    traced = trace(pipe, case.sampling)
    path = trajectory(pipe.scheduler, traced.timesteps)
    stages, probes = path.stages(3), make_probes(pipe, 2, 0, "test")
    nothing = Statistics(({}, {}, {}), (0.0, 0.0, 0.0))
    library = Library(denoiser_of(pipe), Anatomy((), (), ()), nothing, Method(Depth()), QUIET)
    own = stages.steps(path.timesteps)
    scores, calls = list[list[float]](), list[int]()
    for memory in (0, 1 << 30):
        fitness = Fitness(
            pipe, library, stages, probes, case.sampling, LatentSNR(), Comparison(path, known=PrefixCache(memory))
        )
        candidates = [Candidate.of([[0]] * 3, counts) for counts in (own, *COUNTS, own)]
        scores.append(list(map(fitness, candidates)))
        calls.append(fitness.calls)
    assert scores[0] == scores[1]
    assert np.isfinite(scores[0]).all()
    assert scores[0][0] == 120  # the user's own steps are the reference, to the bit
    assert len(set(scores[0])) == len(COUNTS) + 1
    assert calls[1] < calls[0]


@pytest.mark.parametrize("name", ["PixArt-Sigma", pytest.param("SD", marks=pytest.mark.slow)])
def test_steps_and_levels_of_a_text_pipeline_are_searched_saved_and_loaded(name: str, tmp_path: Path) -> None:
    case = CASES[name]
    pipe = made(case.make)
    probes = make_probes(pipe, 2, 0, "test", PROMPTS)
    dense = sample(pipe, probes, case.sampling)
    small = joint(sampling=case.sampling, prompts=PROMPTS, method=METHOD, timestep_generations=1, **FEW)
    assert restore(json.loads(json.dumps(describe(small)))) == small
    fast = compress(pipe, 0.7, small)
    assert fast.report.macs_ratio <= 0.7
    with fast.routed(pipe):
        pruned = sample(pipe, probes, case.sampling)
    assert not torch.equal(pruned, dense)
    assert torch.equal(sample(pipe, probes, case.sampling), dense)
    fast.save(tmp_path / "out")
    other, again = made(case.make), load(tmp_path / "out")
    assert again.sampling == case.sampling
    with again.routed(other):
        assert torch.equal(sample(other, probes, case.sampling), pruned)


@pytest.mark.slow
def test_a_text_pipeline_is_evaluated_and_timed() -> None:
    case = CASES["PixArt-alpha"]
    pipe, asked = made(case.make), replace(case.sampling, negative_prompt="blurred")
    small = settings(sampling=asked, prompts=PROMPTS, method=METHOD, **FEW)
    fast = compress(pipe, 0.8, replace(small, measure=ImageSSIM()))
    ready = prepare(pipe, fast.report.settings)
    effort = Extent(noises=2, images=2, rounds=1, batch=2, strip=1, random=2)
    found = [found_again(fast.report)]
    judged = evaluate(ready, found, None, effort, Conduct(QUIET), fast)
    assert judged.rows[0].contender == "dense"
    assert all(row.snr_db is None or np.isfinite(row.snr_db) for row in judged.rows)
    assert judged.images[0].shape == (1, 3, 256, 256)
    rows = compare(pipe, fast, [2], 1, QUIET)["rows"]
    assert {row["runner"] for row in rows} >= {"dense", "routed at level 0", "diff-es, resident"}


def test_a_journal_is_bound_to_its_prompts(tmp_path: Path) -> None:
    case, journal = CASES["PixArt-alpha"], tmp_path / "journal.jsonl"
    small = settings(sampling=case.sampling, prompts=PROMPTS, method=Method(Width(2, dense=())), **FEW)
    fast = compress(made(case.make), 0.8, small, run=Run(journal=journal))
    lines = journal.read_text().splitlines()
    journal.write_text("\n".join(lines[:4]) + "\n")
    resumed = compress(made(case.make), 0.8, small, run=Run(journal=journal, resume=True))
    assert resumed.schedule == fast.schedule
    with pytest.raises(DiffESError, match=r"expected the settings the search began with, found prompts"):
        compress(made(case.make), 0.8, replace(small, prompts=PROMPTS[:2]), run=Run(journal=journal, resume=True))


def run(*arguments: object) -> int:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["diff-es", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            main()
    return int(ended.value.code or 0)


def test_the_command_line_takes_prompts(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    model, prompts, out = tmp_path / "model", tmp_path / "prompts.txt", tmp_path / "out"
    made(CASES["PixArt-Sigma"].make).save_pretrained(model)
    prompts.write_text("\n".join(PROMPTS), encoding="utf-8")
    small = ["--stages", 2, "--steps", 4, "--guidance", 3, "--batch", 2, "--calibration-samples", 2, "--levels", 2]
    small += [
        "--generations",
        1,
        "--population",
        2,
        "--finalists",
        1,
        "--search-noises",
        2,
        "--first-rung",
        0,
        "--held-out-noises",
        1,
        "--front",
        "",
    ]
    asked = ["--prompts", prompts, "--negative-prompt", "blurred", "--height", 256, "--width", 256]
    code = run("compress", model, "--out", out, "--macs", 0.9, "--levers", "prune", *small, *asked, "--json")
    assert code == 0, capfd.readouterr().err
    fast = load(out)
    assert (fast.sampling.negative_prompt, fast.sampling.height, fast.sampling.num_frames) == ("blurred", 256, None)
    assert fast.report.settings.prompts == PROMPTS
    capfd.readouterr()
    assert run("sample", out, "--count", 2, "--prompt", "a cat", "--out", tmp_path / "images", "--json") == 0
    shown: dict[str, Any] = json.loads(capfd.readouterr().out.splitlines()[-1])
    assert shown["prompts"] == ["a cat", "a cat"]
    assert all(Path(image).exists() for image in shown["images"])
    assert run("sample", out, "--label", "3") == 2
    assert "--label: expected a pipeline of classes, found PixArtSigmaPipeline. Say --prompt." in capfd.readouterr().err
    assert run("export", out, "--out", tmp_path / "exported") == 2
    assert "expected DiTPipeline, found PixArtSigmaPipeline" in " ".join(capfd.readouterr().err.split())
