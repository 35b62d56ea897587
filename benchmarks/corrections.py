"""What are corrections of steps worth: by their number of directions, by the noises they are fitted to, and at another
guidance than the one they were fitted at?

    python benchmarks/corrections.py --scheduler DDIMScheduler

Half of the user's steps, placed by the trailing rule, on the bundled model; every row is judged by mean SNR (dB) to the
finely stepped dense model *at the guidance of its column*, on noises that nothing was fitted to.
"""

from __future__ import annotations

import argparse

import torch
from torch import Tensor

from diff_es.compression.sensitivity import by_rule
from diff_es.compression.settings import Levers, Settings
from diff_es.compression.study import Study, prepare
from diff_es.pipelines.families import Sampling
from diff_es.pipelines.loading import load
from diff_es.pipelines.probes import make_probes
from diff_es.pipelines.sampling import sample
from diff_es.scoring.metrics import snr_db
from diff_es.scoring.timing import Runner
from diff_es.trajectory.corrections import Corrections
from diff_es.utils.progress import Reporter


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scheduler", default="DDIMScheduler")
    parser.add_argument("--steps", type=int, default=20, help="the user's own, of which half are taken")
    parser.add_argument("--guidances", type=float, nargs="+", default=[1.0, 2.0, 4.0])
    parser.add_argument("--fitted", type=float, default=2.0, help="the guidance whose corrections are carried over")
    parser.add_argument("--directions", type=int, nargs="+", default=[1, 2, 3, 4, 6])
    parser.add_argument("--search-noises", type=int, nargs="+", default=[2, 4, 16], help="noises that are fitted to")
    parser.add_argument("--noises", type=int, default=32, help="held-out noises")
    args = parser.parse_args()
    pipe, usual, most = load("bundled", scheduler=args.scheduler, dtype=torch.float32), 4, max(args.probes)

    def study(guidance: float, count: int = usual, probes: int = most) -> Study:
        chosen = Settings(
            sampling=Sampling(args.steps, guidance),
            levers=Levers.STEPS,
            calibration_samples=2,  # nothing is pruned
            search_noises=probes,
            first_rung=0,
            held_out_noises=2,
            corrections=count,
        )
        return prepare(pipe, chosen, Reporter(quiet=True))

    def fitted(ready: Study) -> Corrections:
        return ready.held_out.corrections(by_rule(ready, 0.5)[0])

    rows, carried = dict[str, list[float]](), fitted(study(args.fitted))
    for guidance in args.guidances:
        ready = study(guidance)
        half, goal = ready.timesteps(by_rule(ready, 0.5)[0]), latents(ready, ready.reference, args.noises)
        contenders = {
            f"all {args.steps} steps": latents(ready, None, args.noises),
            "half of them": latents(ready, half, args.noises),
            f"half, corrected as for guidance {args.fitted:g}": latents(ready, half, args.noises, carried),
        }
        for count in args.directions:
            corrections = fitted(study(guidance, count))
            contenders[f"half, {count} directions, {most} noises"] = latents(ready, half, args.noises, corrections)
        for probes in args.probes[:-1]:
            corrections = fitted(study(guidance, probes=probes))
            contenders[f"half, {usual} directions, {probes} noises"] = latents(ready, half, args.noises, corrections)
        for name, found in contenders.items():
            rows.setdefault(name, []).append(float(snr_db(goal, found).mean()))
            print(f"guidance {guidance:g}, {name}: {rows[name][-1]:.2f} dB", flush=True)
    print(f"\n| {args.scheduler}, guidance | " + " | ".join(f"{guidance:g}" for guidance in args.guidances) + " |")
    print("|---" * (len(args.guidances) + 1) + "|")
    for name, values in rows.items():
        print(f"| {name} | " + " | ".join(f"{value:.1f}" for value in values) + " |")


def latents(ready: Study, timesteps: tuple[float, ...] | None, count: int, corrections: Corrections = ()) -> Tensor:
    """Final latents of held-out noises."""
    runner = Runner("", ready.settings.sampling, timesteps=timesteps, corrections=corrections)
    with runner.context(ready.pipe):
        return sample(ready.pipe, make_probes(ready.pipe, count, 0, "evaluation"), runner.sampling)


if __name__ == "__main__":
    main()
