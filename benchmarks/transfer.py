"""Do corrections of steps serve another guidance than the one they were fitted at, and how many noises do they need?

    python benchmarks/transfer.py --scheduler DDIMScheduler

Half of the user's steps, placed by the trailing rule, on the bundled model; every row is judged by mean SNR (dB) to the
finely stepped dense model *at the guidance of its column*, on noises that nothing was fitted to.
"""

from __future__ import annotations

import argparse

import torch
from torch import Tensor

from diff_es.benchmark import Runner
from diff_es.loading import load
from diff_es.metrics import snr_db
from diff_es.multistep import Corrections
from diff_es.pipeline import Pipeline, Sampling, make_probes, sample
from diff_es.progress import Reporter
from diff_es.sensitivity import by_rule
from diff_es.settings import Levers, Settings
from diff_es.study import Study, prepare


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scheduler", default="DDIMScheduler")
    parser.add_argument("--steps", type=int, default=20, help="the user's own, of which half are taken")
    parser.add_argument("--guidances", type=float, nargs="+", default=[1.0, 1.5, 2.0, 3.0, 5.0])
    parser.add_argument(
        "--fitted", type=float, default=2.0, help="the guidance of the corrections that are carried over"
    )
    parser.add_argument(
        "--probes", type=int, nargs="+", default=[2, 4, 8, 16], help="noises that corrections are fitted to"
    )
    parser.add_argument("--noises", type=int, default=32, help="held-out noises")
    args = parser.parse_args()
    pipe, most = load("bundled", scheduler=args.scheduler, dtype=torch.float32), max(args.probes)

    def study(guidance: float, probes: int) -> Study:
        sampling = Sampling(args.steps, guidance)
        chosen = Settings(sampling=sampling, levers=Levers.STEPS, calibration=16, probes=probes, heat=0, held_out=8)
        return prepare(pipe, chosen, Reporter(quiet=True))

    def fitted(ready: Study) -> Corrections:
        return ready.held_out.corrections(by_rule(ready, 0.5)[0])

    def judged(ready: Study, timesteps: tuple[float, ...] | None, corrections: Corrections = ()) -> float:
        runner = Runner("", ready.settings.sampling, timesteps=timesteps, corrections=corrections)
        fine = Runner("", ready.settings.sampling, timesteps=ready.reference)
        return float(snr_db(latents(pipe, fine, args.noises), latents(pipe, runner, args.noises)).mean())

    rows = dict[str, list[float]]()
    carried = fitted(study(args.fitted, most))
    for guidance in args.guidances:
        ready = study(guidance, most)
        half = ready.timesteps(by_rule(ready, 0.5)[0])
        rows.setdefault(f"all {args.steps} steps", []).append(judged(ready, None))
        rows.setdefault("half, as they are", []).append(judged(ready, half))
        rows.setdefault(f"half, corrected as for guidance {args.fitted:g}", []).append(judged(ready, half, carried))
        for count in args.probes:
            corrections = fitted(ready if count == most else study(guidance, count))
            rows.setdefault(f"half, fitted to {count} noises", []).append(judged(ready, half, corrections))
    print(f"\n| {args.scheduler}, guidance | " + " | ".join(f"{guidance:g}" for guidance in args.guidances) + " |")
    print("|---" * (len(args.guidances) + 1) + "|")
    for name, values in rows.items():
        print(f"| {name} | " + " | ".join(f"{value:.1f}" for value in values) + " |")


def latents(pipe: Pipeline, runner: Runner, count: int) -> Tensor:
    """Final latents of held-out noises."""
    with runner.context(pipe):
        return sample(pipe, make_probes(pipe, count, 0, "evaluation"), runner.sampling)


if __name__ == "__main__":
    main()
