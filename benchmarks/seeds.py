"""Is the evolved schedule better than its rivals at equal cost? The demo's question, over several seeds.

    python benchmarks/seeds.py --seeds 0 1 2

For every seed: the demo's calibration and one search among levels alone for both budgets; for every budget the rivals
at the same MACs, and random search with the same number of evaluations; judged by mean SNR (dB) against the dense
model's own steps on noises that no search has seen. Prints Markdown tables.
"""

from __future__ import annotations

import argparse
import statistics

from diff_es.compression.evaluator import Judge
from diff_es.compression.evolve import evolve
from diff_es.compression.sensitivity import sensitivity
from diff_es.compression.settings import Levers
from diff_es.compression.study import prepare
from diff_es.evaluation.demo import BUDGETS, SETTINGS
from diff_es.evaluation.evaluate import Contender, contenders, random_rival, sampled
from diff_es.pipelines.loading import load
from diff_es.scoring.journal import Journal
from diff_es.scoring.metrics import snr_db
from diff_es.scoring.timing import Runner
from diff_es.utils.progress import Reporter


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--noises", type=int, default=64, help="held-out noises")
    args = parser.parse_args()
    reporter, pipe = Reporter(), load("bundled")
    scores = dict[tuple[float, str], list[float]]()
    for seed in args.seeds:
        study = prepare(pipe, SETTINGS.changed(seed=seed, levers=Levers.PRUNE), reporter)
        dense = Contender("dense", 1.0, 1.0, Runner("dense", study.settings.sampling))
        reference, _ = sampled(study, dense, args.noises, reporter)
        journal = Journal(None, {}, resume=False)
        judge = Judge(study, journal)
        table = sensitivity(study, judge, reporter)
        for budget, found in evolve(study, BUDGETS, judge, table, reporter).items():
            random = random_rival(study, budget, found.evaluations, None, reporter)
            for rival in contenders(study, budget, found, random):
                latents, _ = sampled(study, rival, args.noises, reporter)
                scores.setdefault((budget, rival.name), []).append(float(snr_db(reference, latents).mean()))
    for budget in BUDGETS:
        print(f"\n| SNR in dB at {budget:g} of the MACs | " + " | ".join(f"seed {s}" for s in args.seeds) + " | mean |")
        print("|---" * (len(args.seeds) + 2) + "|")
        for (at, name), values in scores.items():
            if at == budget:
                cells = [*(f"{value:.2f}" for value in values), f"{statistics.mean(values):.2f}"]
                print(f"| {name} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
