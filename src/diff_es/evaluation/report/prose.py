"""What the rows say, in sentences and in a few large figures: computed, at the precision of the table, either way."""

import math
from collections.abc import Iterator, Sequence

from diff_es.evaluation.report.data import CONTENDERS, Row, is_number, ordered

TIMES, MINUS = "\u00d7", "\u2212"  # escaped, since they are easily taken for x and -


def headline(rows: Sequence[Row]) -> str:
    """The result at the tightest budget that Diff-ES was given: a fixed rule, so that nothing is picked for effect."""
    ours = _tightest(rows)
    if ours is None:
        return "No Diff-ES schedule was evaluated in this run."
    at, speed = at_budget(ours.budget), f"samples {ours.sped(TIMES)} as fast as the dense model"
    if ours.doubt:
        speed = "how much faster it samples could not be measured reliably"
    if not is_number(ours.snr_db):
        return f"{at}, {speed}." if ours.doubt else f"{at}, Diff-ES {speed}."
    rivals = {row.contender: row for row in _comparable(rows, ours)}
    uniform = f", {_gap(ours, rivals['uniform'])} uniform pruning" if "uniform" in rivals else ""
    sentence = f"{at}, Diff-ES matches the reference to {decibels(ours)}{uniform}, and {speed}."
    if "fewer-steps" in rivals and _tenths(rivals["fewer-steps"]) > _tenths(ours):
        sentence += f" Taking fewer steps of the dense model is closer: {decibels(rivals['fewer-steps'])}."
    return sentence


def findings(rows: Sequence[Row]) -> tuple[str, ...]:
    """What the rows say about Diff-ES in plain sentences, budget by budget, whichever way they turn out."""
    sentences = []
    for ours in sorted((row for row in rows if row.contender == "diff-es"), key=lambda row: -row.budget):
        told = [*_fidelity(ours, _comparable(rows, ours)), *_speed(ours), *_distance(ours, rows)]
        sentences += [f"{at_budget(ours.budget)}, {each}" for each in told]
    return tuple(sentences)


def _fidelity(ours: Row, rivals: Sequence[Row]) -> Iterator[str]:
    gaps = [f"{_gap(ours, row)} {CONTENDERS[row.contender].prose}" for row in rivals if row.contender != "fewer-steps"]
    if gaps:
        yield f"Diff-ES ({decibels(ours)}) is {_and(gaps)}."
    for fewer in (row for row in rivals if row.contender == "fewer-steps"):
        pruned, stepped = _tenths(ours), _tenths(fewer)
        if stepped == pruned:
            yield f"Diff-ES and fewer steps of the dense model are equally close to the reference: {pruned:.1f} dB."
        elif stepped > pruned:
            yield (
                "taking fewer steps of the dense model is closer to the reference than Diff-ES: "
                f"{stepped:.1f} against {pruned:.1f} dB."
            )
        else:
            yield (
                "Diff-ES is closer to the reference than taking fewer steps of the dense model: "
                f"{pruned:.1f} against {stepped:.1f} dB."
            )


def _speed(ours: Row) -> Iterator[str]:
    if ours.doubt:
        yield f"how much faster Diff-ES runs could not be measured reliably: {ours.doubt}."
    elif ours.macs_ratio > 0:
        yield (
            f"Diff-ES runs {ours.speedup:.2f}{TIMES} as fast as the dense model (the denoiser alone "
            f"{ours.denoiser_speedup:.2f}{TIMES}), where its MACs ratio promises {1 / ours.macs_ratio:.2f}{TIMES}."
        )


def _distance(ours: Row, rows: Sequence[Row]) -> Iterator[str]:
    """Closeness to the dense model and to real data need not agree, so the second is said as plainly."""
    others = [row for row in ordered(rows) if row.contender == "dense" or row.budget == ours.budget]
    told = [
        f"{row.frechet_distance:.2f} for {CONTENDERS[row.contender].prose}"
        for row in others
        if row != ours and is_number(row.frechet_distance)
    ]
    if told and is_number(ours.frechet_distance):
        own = f"{ours.frechet_distance:.2f} for Diff-ES"
        yield f"the Fréchet distance to real data (lower is closer) is {own}, against {_and(told)}."


def figures(rows: Sequence[Row]) -> list[tuple[str, str, str]]:
    """Up to four (value, unit, meaning) for the top of the page, favourable or not."""
    ours = _tightest(rows)
    if ours is None:
        return []
    rivals = {row.contender: row for row in _comparable(rows, ours)}
    closeness = (f"{_tenths(ours):.1f}", "dB", "closeness of Diff-ES to the reference")
    figures = [closeness] if is_number(ours.snr_db) else []
    for name in ("uniform", "fewer-steps"):
        if name in rivals:
            gap = f"{_tenths(ours) - _tenths(rivals[name]):+.1f}".replace("-", MINUS)
            figures.append((gap, "dB", f"against {CONTENDERS[name].prose}"))
    if ours.doubt:
        return [*figures, ("–", "", f"speed-up not measured reliably: {ours.doubt}")]
    promise = f"measured; its MACs promise {1 / ours.macs_ratio:.2f}{TIMES}" if ours.macs_ratio > 0 else "measured"
    return [*figures, (f"{ours.speedup:.2f}", TIMES, f"as fast as the dense model, {promise}")]


def by_chance(rows: Sequence[Row]) -> str:
    """What random search is: of how many schedules it kept the best, and how many Diff-ES tried."""
    told = list[tuple[float, str]]()
    for row in sorted((row for row in rows if row.contender == "random" and row.tried), key=lambda row: -row.budget):
        ours = next((one for one in rows if one.contender == "diff-es" and one.budget == row.budget), None)
        beside = f"; Diff-ES tried {ours.tried:,}" if ours is not None and ours.tried else ""
        told.append((row.budget, f"the best of {row.tried:,} random schedules{beside}."))
    if not told:
        return CONTENDERS["random"].way
    if len({sentence for _, sentence in told}) == 1:
        return f"{told[0][1][0].upper()}{told[0][1][1:]}"
    return " ".join(f"{at_budget(budget)}, {sentence}" for budget, sentence in told)


def at_budget(budget: float) -> str:
    return "At the full compute" if budget == 1 else f"At {budget:g} of the compute"


def decibels(row: Row) -> str:
    return f"{_tenths(row):.1f} dB"


def _tightest(rows: Sequence[Row]) -> Row | None:
    """Of the budgets that there are rivals at, if there are any."""
    ours = [row for row in rows if row.contender == "diff-es"]
    contested = {row.budget for row in rows if row.contender not in ("dense", "diff-es")}
    return min(ours, key=lambda row: (row.budget not in contested, row.budget), default=None)


def _comparable(rows: Sequence[Row], ours: Row) -> list[Row]:
    """The rivals of the same budget whose closeness to the reference was measured, if ours was."""
    rivals = [row for row in ordered(rows) if row.budget == ours.budget and row.contender not in ("dense", "diff-es")]
    return [row for row in rivals if is_number(row.snr_db) and is_number(ours.snr_db)]


def _tenths(row: Row) -> float:
    """SNR as the page shows it; comparing these keeps sentence and table in agreement."""
    return round(row.snr_db if row.snr_db is not None else math.nan, 1)


def _gap(ours: Row, rival: Row) -> str:
    gap = round(_tenths(ours) - _tenths(rival), 1)
    return "level with" if gap == 0 else f"{abs(gap):.1f} dB {'above' if gap > 0 else 'below'}"


def _and(parts: Sequence[str]) -> str:
    return " and ".join(filter(None, (", ".join(parts[:-1]), parts[-1])))


def sped_between(row: Row) -> str:
    """How fast, with the interval, or why that is not known."""
    if row.doubt:
        return f"speed not measured reliably: {row.doubt}"
    known = is_number(row.speedup_low) and is_number(row.speedup_high) and row.contender != "dense"
    between = f" (from {row.speedup_low:.2f} to {row.speedup_high:.2f})" if known else ""
    return f"{row.speedup:.2f}{TIMES} as fast as dense{between}"
