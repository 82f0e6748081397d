"""Turns measured rounds into ratios, a table, and a verdict.

Every ratio is written so that more is better for us: speeds are ours over llama.cpp's, costs (times, memory)
are llama.cpp's over ours. Ratios are taken round by round, between two processes that ran one after the
other, and the median over the rounds counts: what else the machine did then falls on both.
"""

from __future__ import annotations

import statistics

# What is printed, in which order; whether a larger figure is better; and its unit.
FIGURES = {
    "prefill": (True, "tok/s"),
    "decode": (True, "tok/s"),
    "batch_4": (True, "tok/s"),
    "batch_16": (True, "tok/s"),
    "batch_32": (True, "tok/s"),
    "first_token": (False, "ms"),
    "load": (False, "ms"),
    "memory": (False, "MiB"),
}

Round = dict[str, float]


def ratio(figure: str, ours: float, theirs: float) -> float:
    """More is better for us."""
    return ours / theirs if FIGURES[figure][0] else theirs / ours


def summary(rounds: list[tuple[Round, Round]]) -> dict[str, dict[str, float]]:
    """Per figure: the medians of both sides, the median ratio, and the smallest and largest ratio."""
    told: dict[str, dict[str, float]] = {}
    for figure in FIGURES:
        pairs = [(ours[figure], theirs[figure]) for ours, theirs in rounds if figure in ours and figure in theirs]
        if not pairs:
            continue
        ratios = [ratio(figure, *pair) for pair in pairs]
        told[figure] = {
            "ours": statistics.median(ours for ours, _ in pairs),
            "theirs": statistics.median(theirs for _, theirs in pairs),
            "ratio": statistics.median(ratios),
            "ratio_min": min(ratios),
            "ratio_max": max(ratios),
        }
    return told


def verdicts(summaries: dict[str, dict], floors: dict[str, dict[str, list[float]]]) -> list[dict]:
    """What each aim and floor says about each measured model; a figure that was not measured misses its floor,
    a model that was not measured is no matter of this run."""
    told = []
    for model, figures in floors.items():
        if model not in summaries:
            continue
        for figure, (aim, floor) in figures.items():
            found = summaries[model].get(figure, {}).get("ratio")
            state = "missed" if found is None or found < floor else "floor" if found < aim else "aim"
            told.append({"model": model, "figure": figure, "ratio": found, "aim": aim, "floor": floor, "met": state})
    return told


def table(summaries: dict[str, dict], verdict: list[dict]) -> str:
    """A line per model and figure: ours, llama.cpp's, the ratio, its spread, and what was wanted."""
    wanted = {(line["model"], line["figure"]): line for line in verdict}
    lines = [f"{'model':<16}{'figure':<13}{'ours':>10}{'llama.cpp':>11} {'unit':<6}{'ratio':>7}  {'spread':<13}wanted"]
    for model, figures in summaries.items():
        for figure, told in figures.items():
            line = wanted.get((model, figure))
            aim = f"≥ {line['aim']:g}, floor {line['floor']:g}: {line['met']}" if line else ""
            spread = f"{told['ratio_min']:.2f}–{told['ratio_max']:.2f}"
            lines.append(
                f"{model:<16}{figure:<13}{told['ours']:>10.1f}{told['theirs']:>11.1f} {FIGURES[figure][1]:<6}"
                f"{told['ratio']:>7.2f}  {spread:<13}{aim}".rstrip()
            )
    return "\n".join(lines)


def same_tokens(ours: list[list[int]], theirs: list[list[int]]) -> list[int]:
    """How many tokens of each answer agree before the first that does not."""

    def common(a: list[int], b: list[int]) -> int:
        pairs = zip(a, b)
        return next((at for at, (x, y) in enumerate(pairs) if x != y), min(len(a), len(b)))

    return [common(a, b) for a, b in zip(ours, theirs)]
