"""What a result is, in a few lines of text and as a model card."""

from __future__ import annotations

from collections.abc import Sequence

from ..layers import Plan
from ..pipelines.origin import Origin
from ..pruning.budget import MacsRatio
from ..routing.placements import Placement
from ..trajectory.corrections import Corrections
from ..trajectory.stages import Schedule
from .report import SearchReport
from .settings import Levers

_UNITS_IN_FULL = 16
"""The most units of which a table shows every level."""


def levels_of(row: Sequence[int]) -> str:
    """The levels of a stage's units; of many units how many have each level."""
    if len(row) <= _UNITS_IN_FULL:
        return " ".join(map(str, row))
    return ", ".join(f"{row.count(level)} at {level}" for level in sorted(set(row)))


def summary(
    schedule: Schedule,
    plans: Sequence[Plan],
    corrections: Corrections,
    placement: Placement | None,
    origin: Origin | None,
    report: SearchReport | None,
) -> str:
    """Model, budget, steps, levels by stage, fidelity, speed and memory; of a result made by hand what is known."""
    lines = list[tuple[str, str]]()
    if origin is not None:
        sampler = f"{origin.scheduler['_class_name']}, {origin.dtype}"
        lines.append(("Model", f"{origin.model or 'a local pipeline'} ({sampler})"))
    if report is not None:
        lines += _found(report, corrections)
    sizes = {id(plan): _bytes(plan) for plan in plans}
    waiting = "by the memory that is free" if placement is None else type(placement).__name__.lower()
    lines.append(("Weights", f"{sum(sizes.values()) / 1e6:.1f} MB of stages beside the dense model's, {waiting}"))
    rows, timesteps = [("Stage", "From timestep", "Steps", "Levels (0 is dense)")], _starts(schedule, report)
    for stage, levels in enumerate(schedule.levels):
        steps = "" if report is None else str(report.steps[stage])
        rows.append((str(stage), timesteps[stage], steps, "–" if steps == "0" else levels_of(levels)))
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    table = [
        "  ".join([*(cell.rjust(width) for cell, width in zip(row, widths, strict=False)), row[3]]) for row in rows
    ]
    width = max(len(name) for name, _ in lines)
    return "\n".join([*(f"{name.ljust(width)}  {text}" for name, text in lines), "", *table])


def _found(report: SearchReport, corrections: Corrections) -> list[tuple[str, str]]:
    """The lines of a search."""
    sampling, own, levers = report.settings.sampling, sum(report.steps), report.settings.levers
    kept = f"{report.macs_ratio:.3f} of the MACs"
    if not isinstance(report.budget.compute, MacsRatio):
        kept += f", {report.cost_ratio:.3f} of the time of its steps"
    memory = "" if report.budget.memory is None else f", {report.budget.memory}"
    stay = levers is Levers.PRUNE or own == sampling.steps  # a step may call the denoiser at several timesteps
    taken = f"{sampling.steps}, the user's own" if stay else f"{own} where the user takes {sampling.steps}"
    corrected = f", corrected along up to {max(map(len, corrections))} directions" if corrections else ""
    error = "" if report.held_out_error is None else f" ± {report.held_out_error:.2f}"
    kind = type(report.settings.measure).__name__
    lines = [
        ("Budget", f"{report.budget.compute}{memory}; kept: {kept}"),
        ("Steps", f"{taken}, at guidance {sampling.guidance:g}{corrected}"),
        ("Fidelity", f"{report.held_out_score:.2f}{error} ({kind}) on noises that nothing was chosen on"),
    ]
    if report.own_held_out_score is not None:
        lines.append(("", f"{report.own_held_out_score:.2f} is the user's own setting at, compared with a finer run"))
    if report.measured_speedup is None:
        speed = "not measured: diff-es bench"
    elif report.speedup_doubt:
        speed = f"not measured reliably: {report.speedup_doubt}"
    else:
        speed = f"{report.measured_speedup:.2f}x, measured"
    return [*lines, ("Speed-up", speed)]


def _starts(schedule: Schedule, report: SearchReport | None) -> list[str]:
    """The first timestep of each stage."""
    if report is None:
        return ["", *(f"<= {boundary:g}" for boundary in schedule.stages.boundaries)]
    found, first = list[str](), 0
    for steps in report.steps:
        found.append(f"{report.timesteps[first]:g}" if steps else "–")
        first += steps
    return found


def _bytes(plan: Plan) -> int:
    tensors = [t for cut in plan.cuts.values() for t in (cut.kept, cut.weight, cut.bias) if t is not None]
    tensors += [t for cut in plan.cuts.values() for factor in cut.factors for t in factor.tensors()]
    tensors += [t for bypass in plan.bypasses.values() if bypass is not None for t in bypass.tensors().values()]
    return sum(int(t.nbytes) for t in tensors)


def model_card(text: str, origin: Origin | None, repository: str) -> str:
    """A README for a repository of the hub, with its metadata; ``text`` is the summary."""
    model = "" if origin is None else origin.model
    based = f"base_model: {model}\n" if model.count("/") == 1 and not model.startswith(("/", ".")) else ""
    return f"""---
library_name: diff-es
{based}tags:
- diffusers
- diff-es
- pruning
---

# {repository}

A faster version of {model or "a diffusion pipeline"}, found by [Diff-ES](https://arxiv.org/abs/2603.05105): pruned
stage by stage, with its sampler steps chosen. The base model is not in this repository.

```
{text}
```

```python
import diff_es

diff_es.enable(pipe, "{repository}")  # `pipe`: the pipeline of the base model; diff_es.disable(pipe) undoes it
```

Figures are those of the search, on its device, for this model and this setting alone.
"""
