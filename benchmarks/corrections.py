"""What are corrections of steps worth: by their number of directions, by the noises they are fitted to, and at another
guidance than the one they were fitted at?

    python benchmarks/corrections.py --scheduler DDIMScheduler

Half of the user's steps, placed by the trailing rule, on the bundled model; every row is judged by mean SNR (dB) to the
finely stepped dense model *at the guidance of its column*, on noises that nothing was fitted to.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from common import Model, Noises, Steps, header, options, row, snr
from torch import Tensor

from diff_es.compression.settings import Levers, Settings
from diff_es.compression.starts import by_rule
from diff_es.compression.study import Study, prepare
from diff_es.pipelines.families import Sampling
from diff_es.pipelines.loading import load
from diff_es.pipelines.probes import make_probes
from diff_es.pipelines.sampling import sample
from diff_es.scoring.timing import Runner
from diff_es.trajectory.corrections import DIRECTIONS, Corrections
from diff_es.utils.progress import Reporter


@dataclass(frozen=True)
class Options:
    model: Model = "bundled"
    scheduler: Annotated[str, "class of the sampler"] = "DDIMScheduler"
    steps: Steps = 20
    guidances: Annotated[tuple[float, ...], "one column for each"] = (1.0, 2.0, 4.0)
    fitted: Annotated[float, "the guidance whose corrections are carried over"] = 2.0
    directions: Annotated[tuple[int, ...], "most directions of a step's correction"] = (1, 2, 3, 4, 5, 6, 7)
    search_noises: Annotated[tuple[int, ...], "noises that are fitted to"] = (2, 4, 16)
    noises: Noises = 32


def main() -> None:
    asked = options(Options, __doc__)
    pipe = load(asked.model, scheduler=asked.scheduler, dtype=torch.float32)
    usual, most = DIRECTIONS, max(asked.search_noises)

    def study(guidance: float, count: int = usual, noises: int = most) -> Study:
        chosen = Settings(
            sampling=Sampling(asked.steps, guidance, batch=noises),  # a result is fitted to one batch
            levers=Levers.STEPS,
            calibration_samples=2,  # nothing is pruned
            search_noises=noises,
            first_rung=0,
            held_out_noises=2,
            corrections=count,
        )
        return prepare(pipe, chosen, Reporter(quiet=True))

    def fitted(ready: Study) -> Corrections:
        return ready.corrections(by_rule(ready, 0.5)[0])

    rows, carried = dict[str, list[float]](), fitted(study(asked.fitted))
    for guidance in asked.guidances:
        ready = study(guidance)
        half, goal = ready.timesteps(by_rule(ready, 0.5)[0]), latents(ready, ready.reference, asked.noises)
        contenders = {
            f"all {asked.steps} steps": latents(ready, None, asked.noises),
            "half of them": latents(ready, half, asked.noises),
            f"half, corrected as for guidance {asked.fitted:g}": latents(ready, half, asked.noises, carried),
        }
        for count in asked.directions:
            corrections = fitted(study(guidance, count))
            contenders[f"half, {count} directions, {most} noises"] = latents(ready, half, asked.noises, corrections)
        for noises in asked.search_noises[:-1]:
            corrections = fitted(study(guidance, noises=noises))
            contenders[f"half, {usual} directions, {noises} noises"] = latents(ready, half, asked.noises, corrections)
        for name, found in contenders.items():
            rows.setdefault(name, []).append(snr(goal, found))
            print(f"guidance {guidance:g}, {name}: {rows[name][-1]:.2f} dB", flush=True)
    print()
    header(f"{asked.scheduler}, guidance", *(f"{guidance:g}" for guidance in asked.guidances))
    for name, values in rows.items():
        row(name, *(f"{value:.1f}" for value in values))


def latents(ready: Study, timesteps: tuple[float, ...] | None, count: int, corrections: Corrections = ()) -> Tensor:
    """Final latents of held-out noises."""
    runner = Runner("", ready.settings.sampling, timesteps=timesteps, corrections=corrections)
    with runner.context(ready.pipe):
        return sample(ready.pipe, make_probes(ready.pipe, count, 0, "evaluation"), runner.sampling)


if __name__ == "__main__":
    main()
