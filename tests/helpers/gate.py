"""What searches of four models found before the code was laid out anew, and what they find now: record and compare.

    python -m tests.helpers.gate tests/data/gate.json    # writes the record anew

For each lever on the tiny models, for all together on the bundled ones, and for two budgets in one search: the journal,
the schedules, hashes of the plans' tensors and of the images. Candidates are written as rows: of each stage the number
of steps, where it is a choice, and the levels; then the timesteps, where they were moved.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from tests.helpers.pipelines import CASES, made
from tests.helpers.tiny import joint, noises, settings, tiny
from torch import Tensor

from diff_es import Compressed, Method, Run, Sampling, Settings, Width, compress
from diff_es.compression.format3 import rows_of
from diff_es.compression.settings import Levers
from diff_es.pipelines.loading import load
from diff_es.pruning.granularity import Granularity
from diff_es.search import Candidate

BUDGETS = (0.6, 0.8)


@dataclass(frozen=True)
class Model:
    make: Callable[[], Any]
    settings: Callable[[Levers], Settings]
    call: dict[str, Any]  # of the pipeline
    sampling: Sampling
    levers: tuple[Levers, ...] = tuple(Levers)


def _small(levers: Levers) -> Settings:
    few: dict[str, Any] = {"stages": 2, "search_noises": 3, "population": 4, "generations": 2}
    few |= {"sensitivity_noises": 3, "sensitivity_levels": 2}
    placing: dict[str, Any] = {"timestep_generations": 3, "timestep_offspring": 4}
    return settings(**few) if levers is Levers.PRUNE else joint(**few, **placing, levers=levers)


def _bundled(levers: Levers) -> Settings:
    few: dict[str, Any] = {
        "search_noises": 2,
        "sensitivity_noises": 1,
        "timestep_generations": 2,
        "timestep_offspring": 2,
        "finalists": 1,
        "held_out_noises": 1,
        "population": 3,
        "generations": 1,
    }
    method = Method(Width(3, dense=()), granularity=Granularity.WHOLE)
    return replace(
        _small(levers), sampling=Sampling(num_inference_steps=4, guidance_scale=2.0, batch=4), method=method, **few
    )


def _unet(levers: Levers) -> Settings:
    few: dict[str, Any] = {"population": 3, "generations": 1, "held_out_noises": 1, "finalists": 1}
    few |= {"timestep_generations": 2, "timestep_offspring": 2}
    return replace(_small(levers), sampling=CASES["SD"].sampling, prompts=("a fox", "a hat"), **few)


CLASSES: dict[str, Any] = {"class_labels": [1, 2], "guidance_scale": 2.0}
MODELS = {
    "tiny DiT": Model(tiny, _small, CLASSES, Sampling(6)),
    "tiny U-Net": Model(lambda: made(CASES["SD"].make), _unet, {"prompt": ["a fox", "a hat"]}, CASES["SD"].sampling),
    "bundled": Model(lambda: load("bundled"), _bundled, CLASSES, Sampling(4), (Levers.BOTH,)),
    "bundled-unet": Model(
        lambda: load("bundled-unet"), _bundled, {"prompt": ["a monster", "a floor"]}, Sampling(4), (Levers.BOTH,)
    ),
}


def of_model(name: str) -> dict[str, Any]:
    """The facts of a model: its dense images, and by lever what was found."""
    model, found = MODELS[name], dict[str, Any]()
    pipe = model.make()
    pipe.set_progress_bar_config(disable=True)

    def images() -> Tensor:
        steps = model.sampling.steps
        return pipe(**model.call, num_inference_steps=steps, generator=noises(2), output_type="pt").images

    dense = images()
    for levers in model.levers:
        with TemporaryDirectory() as folder:
            journal = Path(folder) / "journal.jsonl"
            fast = compress(
                pipe, BUDGETS[0], replace(model.settings(levers), front=BUDGETS[1:]), run=Run(journal=journal)
            )
            results = {}
            for result in sorted((fast, *fast.others), key=budget_of):
                with result.routed(pipe):
                    shown = images()
                results[f"{budget_of(result):g}"] = {**_of_result(result), **_of_images(shown)}
            found[levers.value] = {"journal": lines(journal), "results": results}
    return {"dense": _of_images(dense), "levers": found}


def budget_of(fast: Compressed) -> float:
    return fast.report.limit


def lines(journal: Path) -> list[list[Any]]:
    """Of every evaluation the rows, the score and the scale."""
    read = [json.loads(line) for line in journal.read_text().splitlines()[1:]]
    return [[rows_of(Candidate.from_json(line["candidate"])), line["score"], line["scale"]] for line in read]


def _of_result(fast: Compressed) -> dict[str, Any]:
    return {
        "levels": [list(row) for row in fast.schedule.levels],
        "boundaries": list(fast.schedule.stages.boundaries),
        "timesteps": None if fast.timesteps is None else list(fast.timesteps),
        "finalists": [rows_of(one.candidate) for one in fast.report.finalists],
        "held_out": fast.report.held_out_score,
        "plans": [sha256(b"".join(_bytes(tensor) for tensor in _tensors(plan))).hexdigest() for plan in fast.plans],
    }


def _tensors(plan: Any) -> Sequence[Tensor]:
    """Of a plan in the order of names."""
    cuts = [plan.cuts[name] for name in sorted(plan.cuts)]
    stand_ins = [plan.bypasses[name] for name in sorted(plan.bypasses) if plan.bypasses[name] is not None]
    values = [value for one in [*cuts, *stand_ins] for value in vars(one).values()]
    return [value for value in values if isinstance(value, Tensor)]


def _of_images(images: Tensor) -> dict[str, Any]:
    return {"images": sha256(_bytes(images)).hexdigest(), "brightness": [float(one.mean()) for one in images]}


def _bytes(tensor: Tensor) -> bytes:
    return tensor.detach().contiguous().view(torch.uint8).numpy().tobytes()


if __name__ == "__main__":
    torch.set_num_threads(1)
    Path(sys.argv[1]).write_text(json.dumps({name: of_model(name) for name in MODELS}) + "\n")
