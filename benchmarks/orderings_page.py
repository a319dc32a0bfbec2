"""Goals, tables and the picture of ``distill_orderings.py``."""

import math
import statistics
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from harness import Goal, environment_line, table
from scipy.stats import t as student_t

from selftrain import plots

Row = dict[str, Any]
SOURCES = {
    "dataset": "the data set",
    "mixed": "half of each",
    "student": "the student's own",
    "target": "the target's",
    "both": "target's and draft's",
}
DIVERGENCES = {
    "forward_kl": "forward KL",
    "reverse_kl": "reverse KL",
    "jsd": "JSD",
    "total_variation": "total variation",
}
PATHS = {
    "neither": ("middle", "start"),
    "target alone": ("middle_distilled", "start"),
    "draft alone": ("middle", "student"),
    "target, then draft": ("middle_distilled", "student"),
}
LAWS = ("greedy", "T = 1")
WRITING = ("forward_kl", "reverse_kl", "jsd")
"""The divergences that the middle model is distilled by."""


class Rows:
    """Rows by what they are of, a number per seed at a time."""

    def __init__(self, rows: Sequence[Row]) -> None:
        self.rows = rows
        self.seeds = sorted({row["seed"] for row in rows})

    def values(self, key: str | Callable[[Row], float], **match: Any) -> list[float]:
        """Return one number for each seed, in the order of seeds."""
        of = key if callable(key) else lambda row: row[key]
        match = {"kind": "run", "teacher": "large", "student": "small", "share": 1.0} | match
        found = {
            row["seed"]: of(row)
            for row in self.rows
            if all(row.get(k, v if k == "share" else None) == v for k, v in match.items())
        }
        return [found[seed] for seed in self.seeds]


def interval(values: Sequence[float]) -> tuple[float, float]:
    """Return the mean over seeds and the half-width of its 95 % t-interval (NaN for one seed)."""
    if len(values) < 2:
        return values[0], math.nan
    width = student_t.ppf(0.975, len(values) - 1) * statistics.stdev(values) / len(values) ** 0.5
    return statistics.mean(values), float(width)


def cell(values: Sequence[float], digits: int = 2) -> str:
    """Return "mean ± half-width"."""
    mean, width = interval(values)
    return f"{mean:.{digits}f}" + ("" if math.isnan(width) else f" ± {width:.{digits}f}")


def gain(first: Sequence[float], second: Sequence[float]) -> list[float]:
    """Return the differences, seed by seed."""
    return [a - b for a, b in zip(first, second, strict=True)]


def over(series: Iterable[Sequence[float]]) -> list[float]:
    """Return the mean of several series, seed by seed."""
    return [statistics.mean(values) for values in zip(*series, strict=True)]


def goals_of(rows: Sequence[Row]) -> list[Goal]:
    """Return a goal for each ordering: the lower end of the paired interval is at least 0."""
    of = Rows(rows)

    def ordering(name: str, first: Sequence[float], second: Sequence[float]) -> Goal:
        mean, width = interval(gain(first, second))
        return Goal(
            f"{name}: lower end of the difference", mean - (width if width == width else 0), 0.0
        )

    def writing(key: str, source: str, share: float = 1.0) -> list[float]:
        match = {"student": "middle", "source": source, "share": share}
        return over(of.values(key, divergence=d, **match) for d in WRITING)

    goals = []
    for key, what, sign in (
        ("own_reverse_kl", "KL on own text (negative)", -1),
        ("arrivals", "goals reached", 1),
    ):
        own, mixed, fixed, few = (
            [sign * value for value in writing(key, source, share)]
            for source, share in (
                ("student", 1.0),
                ("mixed", 1.0),
                ("dataset", 1.0),
                ("student", 0.05),
            )
        )
        goals += [
            ordering(f"{what}, own text over half of each", own, mixed),
            ordering(f"{what}, half of each over data set", mixed, fixed),
            ordering(f"{what}, own text after 5 % of prompts over data set with all", few, fixed),
        ]
    for law in LAWS:
        key = f"block_efficiency {law}"
        by_source = {
            source: over(of.values(key, divergence=d, source=source) for d in DIVERGENCES)
            for source in ("dataset", "student", "target", "both")
        }
        for source in ("dataset", "target"):
            goals.append(
                ordering(
                    f"block efficiency, {law}, draft's text over {SOURCES[source]}",
                    by_source["student"],
                    by_source[source],
                )
            )
    staged = {name: staged_values(of, name) for name in PATHS}
    goals += [
        ordering(
            "goals reached, target distilled over not",
            staged["target, then draft"]["arrivals"],
            staged["draft alone"]["arrivals"],
        ),
        ordering(
            "relative latency at T = 1, target alone over target, then draft",
            staged["target alone"]["latency T = 1"],
            staged["target, then draft"]["latency T = 1"],
        ),
    ]
    worst = max(abs(error) for law in LAWS for error in prediction_errors(of, law).values())
    goals.append(Goal("predicted block efficiency, largest deviation", worst, 0.03, at_least=False))
    return goals


def staged_values(of: Rows, name: str) -> dict[str, list[float]]:
    """Return quality and relative latency of one way to come from two models to a decoder.

    Latency is memory-bound: parameters read per token over those of the large model.
    """
    target, draft = PATHS[name]
    match = {"teacher": target, "kind": "start" if draft == "start" else "run"}
    values = {"arrivals": of.values("arrivals", kind="start", student=target)}
    values["size"] = of.values("size middle", kind="source", teacher=None, student=None)
    for law in LAWS:
        values[f"block efficiency {law}"] = of.values(f"block_efficiency {law}", **match)
        gains = of.values(f"best_mbsu {law}", **match)
        values[f"latency {law}"] = [s / g for s, g in zip(values["size"], gains, strict=True)]
    return values


def prediction_errors(of: Rows, law: str) -> dict[str, float]:
    """Return for each kind of run how far the prediction is off, relative, over all seeds."""
    sums: dict[str, list[float]] = {}
    for row in of.rows:
        if f"measured {law}" in row:
            name = "-".join(
                str(row.get(k, "")) for k in ("teacher", "student", "divergence", "source", "share")
            )
            pair = sums.setdefault(name, [0.0, 0.0])
            pair[0] += row[f"block_efficiency {law}"]
            pair[1] += row[f"measured {law}"]
    return {name: predicted / measured - 1 for name, (predicted, measured) in sums.items()}


def page(rows: Sequence[Row], environment: dict[str, Any]) -> str:
    """Return the tables for the docs."""
    of = Rows(rows)
    head = (
        f"*{environment_line(environment)}; {len(of.seeds)} seeds, mean ± half-width of the 95 % "
        "t-interval; command `python benchmarks/distill_orderings.py`.*"
    )
    parts = [
        head,
        "What the middle model writes at T = 1 after distillation from the large one:",
        _writing(of),
        "Block efficiency of the small model as a draft for the large one, with seven draft "
        "tokens, by the text it was distilled on:",
        *(_grid(of, law) for law in LAWS),
        "The middle model for the large one: quality, and latency per token in units of the large "
        "model's (parameters read, at the best number of draft tokens):",
        _staged(of),
        "Block efficiency predicted from texts of the target, over that of the decoder with token "
        "verification, minus one:",
        _prediction(of),
    ]
    return "\n\n".join(parts) + "\n"


def _writing(of: Rows) -> str:
    keys = {"own_reverse_kl": 3, "source_log_likelihood": 3, "arrivals": 2}
    lines = []

    def line(label: str, loss: str, prompts: str, **match: Any) -> None:
        cells = [cell(of.values(key, **match), digits) for key, digits in keys.items()]
        lines.append([label, loss, prompts, *cells])

    line("before", "", "", kind="start", student="middle")
    for divergence in WRITING:
        for source, share in (
            ("dataset", 1.0),
            ("mixed", 1.0),
            ("student", 1.0),
            ("student", 0.05),
        ):
            match = {"student": "middle", "divergence": divergence, "source": source}
            line(SOURCES[source], DIVERGENCES[divergence], f"{share:.0%}", share=share, **match)
    line("the large model itself", "", "", kind="start", student="large")
    source = {"kind": "source", "teacher": None, "student": None}
    cells = [cell(of.values(key, **source), keys[key]) for key in list(keys)[1:]]
    lines.append(["the source", "", "", "", *cells])
    columns = ["text", "divergence", "prompts", "KL to the teacher on own text"]
    return table([*columns, "log-likelihood under the source", "goals reached"], lines)


def _grid(of: Rows, law: str) -> str:
    key = f"block_efficiency {law}"
    lines = [["not distilled", cell(of.values(key, kind="start")), "", "", ""]]
    for divergence, label in DIVERGENCES.items():
        cells = [
            cell(of.values(key, divergence=divergence, source=source))
            for source in ("dataset", "student", "target", "both")
        ]
        lines.append([label, *cells])
    return table(
        [law, "the data set's", "the draft's", "the target's", "target's and draft's"], lines
    )


def _staged(of: Rows) -> str:
    lines = []
    for name in PATHS:
        values = staged_values(of, name)
        cells = [
            cell(values[key], 3 if "latency" in key else 2)
            for law in LAWS
            for key in (f"block efficiency {law}", f"latency {law}")
        ]
        lines.append([name, cell(values["arrivals"]), *cells])
    columns = [f"{what}, {law}" for law in LAWS for what in ("block efficiency", "latency")]
    return table(["distilled", "goals reached", *columns], lines)


def _prediction(of: Rows) -> str:
    lines = []
    for law in LAWS:
        errors = sorted(prediction_errors(of, law).values())
        lines.append(
            [
                law,
                len(errors),
                *(f"{100 * e:+.1f} %" for e in (errors[0], statistics.median(errors), errors[-1])),
            ]
        )
    return table(["", "drafts", "lowest", "median", "highest"], lines)


def draw(rows: Sequence[Row], path: Path) -> None:
    """Draw the grid of drafts, and quality by text."""
    of = Rows(rows)
    axes = plots.panels(2, width=7.0)
    sources = ("dataset", "student", "target", "both")
    cells = [
        [
            interval(of.values("block_efficiency T = 1", divergence=d, source=source))
            for d in DIVERGENCES
        ]
        for source in sources
    ]
    plots.grouped_bars(
        list(DIVERGENCES.values()),
        [SOURCES[s] for s in sources],
        [[mean for mean, _ in line] for line in cells],
        errors=[[0.0 if math.isnan(w) else w for _, w in line] for line in cells],
        ylabel="tokens per target call, T = 1",
        title="What to distil a draft on, and by what",
        reference=("not distilled", interval(of.values("block_efficiency T = 1", kind="start"))[0]),
        ax=axes[0],
    )
    texts = ("dataset", "mixed", "student")
    kinds = WRITING
    cells = [
        [
            interval(of.values("arrivals", student="middle", divergence=d, source=source))
            for source in texts
        ]
        for d in kinds
    ]
    plots.grouped_bars(
        [SOURCES[s] for s in texts],
        [DIVERGENCES[d] for d in kinds],
        [[mean for mean, _ in line] for line in cells],
        errors=[[0.0 if math.isnan(w) else w for _, w in line] for line in cells],
        ylabel="goals reached per text",
        title="What a student writes, by the text it learnt on",
        reference=("before", interval(of.values("arrivals", kind="start", student="middle"))[0]),
        ax=axes[1],
    )
    plots.save_figure(axes, path)
