"""Goals, tables, conclusions and the picture of ``stop_regressing.py``."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from harness import Goal, environment_line, table
from numpy.typing import NDArray
from stop_regressing_runs import (
    BOOTSTRAPPED,
    C51_HEAD,
    HL_GAUSS,
    MSE,
    RATIO,
    RATIOS,
    SUPERVISED,
    SWEPT_BINS,
    TWO_HOT,
)

from selftrain import plots, stats
from selftrain.ops import HLGauss, Support, TwoHot
from selftrain.stats import Interval

Row = dict[str, Any]
Numbers = NDArray[np.float64]


@dataclass(frozen=True)
class Metric:
    """A number of a row."""

    key: str
    name: str
    is_error: bool = True
    """Compared by its ratio, less is better; else by its difference, more is better."""


@dataclass(frozen=True)
class Part:
    """A section of the page; the first metric is the one that heads are compared by."""

    title: str
    text: str
    heads: tuple[str, ...]
    metrics: tuple[Metric, ...]


_SAYS = {
    "better": "HL-Gauss is better than MSE",
    "worse": "HL-Gauss is worse than MSE",
    "no clear difference": "HL-Gauss and MSE show no clear difference",
}
_RMSE = Metric("rmse", "root mean squared error")
PARTS = {
    "regression": Part(
        "Maps",
        "Sums of 16 waves in three dimensions, of variance 1; smooth, medium and rough have "
        "frequencies of 0.5, 1 and 2. 2,000 samples unless another number is given, three layers "
        "of 128, 1,500 steps of Adam, 51 bins on [-6, 6]. The error is that on clean values of "
        "new points.",
        SUPERVISED,
        (_RMSE, Metric("train_rmse", "the same on the clean values of the training points")),
    ),
    "capacity": Part(
        "Capacity",
        "The medium map, without noise, with layers of three widths.",
        SUPERVISED[:3],
        (_RMSE,),
    ),
    "sigma": Part("Sigma", "The medium map, without noise.", (HL_GAUSS,), (_RMSE,)),
    "plasticity": Part(
        "Targets that move",
        "The values sin(1e5 f(x)) + b of 256 points, fitted again in each of six stages, for which "
        "f is renewed and b raised by 2. One network goes through all stages; another starts anew "
        "at the last. The error is that on the points themselves.",
        SUPERVISED[:3],
        (
            _RMSE,
            Metric("first", "the same after the first stage"),
            Metric("fresh", "the same of a new network"),
        ),
    ),
    "grid": Part(
        "Gridworld",
        "DQN for 8,000 steps on a grid of 5 x 5 cells; reward noise is the width of a uniform law "
        "around the rewards, sticky the probability that an action is repeated. The error is that "
        "of all action values against the optimal ones; the regret is what a first action costs, "
        "averaged over all states.",
        BOOTSTRAPPED,
        (
            Metric("rmse", "root mean squared error of values"),
            Metric("regret", "regret", is_error=False),
        ),
    ),
    "catch": Part(
        "Catch",
        "DQN for 12,000 steps on frames of 10 x 10 pixels; a score of 1 is perfect, -1 the worst. "
        "Ten evaluations of 64 games along the way.",
        BOOTSTRAPPED,
        (
            Metric("score", "mean score of all evaluations", is_error=False),
            Metric("last", "score at the end", is_error=False),
        ),
    ),
    "chess": Part(
        "Chess",
        "Action values of Stockfish (depth 4) for 2,000 positions of its games, a fifth of the "
        "games held out; transformers of two layers of width 32, 600 steps of 64 moves, 128 bins. "
        "A puzzle is a held-out position with one move 0.2 better than all others.",
        SUPERVISED,
        (
            Metric("tau", "Kendall's tau of the ranking of legal moves", is_error=False),
            Metric("top_move_agreement", "best move is the engine's", is_error=False),
            Metric("puzzle_accuracy", "puzzles solved", is_error=False),
            Metric("value_rmse", "root mean squared error of values"),
        ),
    ),
}


class Results:
    """Rows by part, condition, head and seed."""

    def __init__(self, rows: Sequence[Row]) -> None:
        self._rows = {(r["part"], r["condition"], r["head"], r["seed"]): r for r in rows}
        self.seeds = sorted({key[3] for key in self._rows})
        self.parts = [part for part in PARTS if any(key[0] == part for key in self._rows)]
        self.seconds = sum(row["seconds"] for row in rows)

    def conditions(self, part: str) -> list[str]:
        """Return the conditions of a part, in the order of its runs."""
        return list(dict.fromkeys(key[1] for key in self._rows if key[0] == part))

    def values(self, part: str, condition: str, head: str, key: str) -> Numbers:
        """Return a number of every seed."""
        found = [self._rows[part, condition, head, seed][key] for seed in self.seeds]
        return np.array(found, dtype=np.float64)

    def effect(self, part: str, condition: str, head: str, other: str = MSE) -> "Effect":
        """Return how much better a head is than another, by the first metric of the part."""
        metric = PARTS[part].metrics[0]
        mine = self.values(part, condition, head, metric.key)
        theirs = self.values(part, condition, other, metric.key)
        if not metric.is_error:
            return Effect(stats.bootstrap_interval(mine - theirs), in_percent=False)
        # The mean of logarithms weighs a halving and a doubling alike.
        found = stats.bootstrap_interval(np.log(theirs) - np.log(mine))
        ends = (1 - np.exp(-np.array([found.mean, found.low, found.high], dtype=np.float64))) * 100
        return Effect(Interval(*map(float, ends)), in_percent=True)


@dataclass(frozen=True)
class Effect:
    """By how much one head is better than another."""

    interval: Interval
    in_percent: bool
    """Per cent less error; else a difference of scores."""

    @property
    def verdict(self) -> str:
        """Say whether the interval excludes no difference."""
        if self.interval.low > 0:
            return "better"
        return "worse" if self.interval.high < 0 else "no clear difference"

    def text(self) -> str:
        """Return the number with its interval."""
        mean, low, high = (float(getattr(self.interval, k)) for k in ("mean", "low", "high"))
        if self.in_percent:
            return f"{mean:+.0f} % [{low:+.0f}, {high:+.0f}]"
        return f"{mean:+.3f} [{low:+.3f}, {high:+.3f}]"


def goals_of(rows: Sequence[Row], workers: int) -> list[Goal]:
    """Return the goals of the benchmark that the rows speak of."""
    results, goals = Results(rows), []
    if "regression" in results.parts:
        effect = results.effect("regression", "smooth", HL_GAUSS).interval
        name = "smooth map, error of HL-Gauss less than MSE's by per cent: lower end"
        goals.append(Goal(name, float(effect.low), 0.0))
    if "chess" in results.parts:
        condition = results.conditions("chess")[0]
        effect = results.effect("chess", condition, HL_GAUSS).interval
        goals.append(
            Goal("chess, tau of HL-Gauss less that of MSE: lower end", float(effect.low), 0.0)
        )
    if "catch" in results.parts:
        for head in BOOTSTRAPPED:
            last = results.values("catch", "Catch", head, "last")
            goals.append(Goal(f"Catch, {head}, mean score at the end", float(last.mean()), 0.8))
    minutes = results.seconds / workers / 60
    goals.append(Goal(f"minutes of training on {workers} cores", minutes, 20.0, at_least=False))
    return goals


def page(rows: Sequence[Row], environment: dict[str, Any], workers: int) -> str:
    """Return the page of tables."""
    results = Results(rows)
    parts = [
        "<!-- Written by benchmarks/stop_regressing.py. -->",
        f"Measured on {environment_line(environment)}; {len(results.seeds)} seeds, "
        f"{results.seconds / workers / 60:.0f} minutes of {workers} cores; means with 95 % "
        "bootstrap intervals over seeds. The last column is how much better HL-Gauss is than MSE "
        "on the same seeds: per cent less error, or the difference of scores.",
    ]
    for part in results.parts:
        spec = PARTS[part]
        parts += [f"**{spec.title}.** {spec.text}"]
        if part == "sigma":
            parts.append(_sigma_table(results))
            continue
        for metric in spec.metrics:
            name = metric.name
            parts += [f"{name[0].upper()}{name[1:]}:", _table(results, part, metric)]
    parts.append(
        "![Bias of readouts, and errors by sigma, by width and along the training on Catch, with "
        "intervals](../benchmarks/results/stop_regressing.png)"
    )
    return "\n\n".join(parts) + "\n"


def _table(results: Results, part: str, metric: Metric) -> str:
    spec = PARTS[part]
    is_first = metric is spec.metrics[0]
    lines = []
    for condition in results.conditions(part):
        found = [results.values(part, condition, head, metric.key) for head in spec.heads]
        line = [condition, *map(_with_interval, found)]
        lines.append(
            [*line, results.effect(part, condition, HL_GAUSS).text()] if is_first else line
        )
    columns = ["setting", *spec.heads, *(["HL-Gauss over MSE"] if is_first else [])]
    return table(columns, lines)


def _with_interval(values: Numbers) -> str:
    if not np.isfinite(values).all():
        return "-"
    found = stats.bootstrap_interval(values)
    return f"{found.mean:.3f} [{found.low:.3f}, {found.high:.3f}]"


def _sigma_condition(bins: int, ratio: float) -> str:
    return f"{bins} bins, sigma {ratio:g}"


def _sigma_table(results: Results) -> str:
    lines = [
        [f"{bins} bins"]
        + [
            _with_interval(results.values("sigma", _sigma_condition(bins, r), HL_GAUSS, "rmse"))
            for r in RATIOS
        ]
        for bins in SWEPT_BINS
    ]
    text = table(["", *(f"sigma {ratio:g}" for ratio in RATIOS)], lines)
    if "regression" not in results.parts:
        return text
    return f"{text}\n\nMSE, for comparison: {_with_interval(_baseline(results))}."


def _baseline(results: Results) -> Numbers:
    """Return MSE's errors on the map of the sweep."""
    return results.values("regression", "medium", MSE, "rmse")


def conclusions(rows: Sequence[Row]) -> str:
    """Return what the numbers say about which head to take; no sentence is written by hand."""
    results = Results(rows)
    lines, verdicts = [], {}
    for part in results.parts:
        spec = PARTS[part]
        if MSE not in spec.heads:
            continue
        for condition in results.conditions(part):
            effect = results.effect(part, condition, HL_GAUSS)
            setting = f"{spec.title.lower()}, {condition}"
            verdicts.setdefault(effect.verdict, []).append(setting)
            others = [h for h in spec.heads if h not in (MSE, HL_GAUSS)]
            told = [f"{h} {results.effect(part, condition, h).verdict}" for h in others]
            lines.append([setting, effect.text(), effect.verdict, "; ".join(told)])
    num = len(lines)
    parts = [
        "<!-- Written by benchmarks/stop_regressing.py. -->",
        table(["setting", "HL-Gauss over MSE", "verdict", "others over MSE"], lines),
    ]
    sentences = [
        f"- {_SAYS[verdict]} in {len(found)} of {num} settings: {'; '.join(found)}."
        for verdict, found in sorted(verdicts.items())
    ]
    sentences += [s for s in (_sigma_sentence(results), _against(results)) if s]
    return "\n\n".join([*parts, "\n".join(sentences)]) + "\n"


def _sigma_sentence(results: Results) -> str:
    """Say how much the width and the number of bins matter."""
    if "sigma" not in results.parts:
        return ""
    means = np.array(
        [
            [
                results.values("sigma", _sigma_condition(b, r), HL_GAUSS, "rmse").mean()
                for r in RATIOS
            ]
            for b in SWEPT_BINS
        ]
    )
    best = means.min(1)
    at_default = means[:, RATIOS.index(RATIO)]
    told = ", ".join(
        f"{RATIOS[int(row.argmin())]:g} at {bins} bins"
        for bins, row in zip(SWEPT_BINS, means, strict=True)
    )
    return (
        f"- The best sigma is {told}; the default of {RATIO:g} has an error at most "
        f"{100 * float((at_default / best).max() - 1):.0f} % above the best, and the worst sigma "
        f"one {100 * float((means.max(1) / best).max() - 1):.0f} % above it."
    )


def _against(results: Results) -> str:
    """Say how HL-Gauss fares against the other categorical heads."""
    told = []
    for other in (TWO_HOT, C51_HEAD):
        found = [
            results.effect(part, condition, HL_GAUSS, other).verdict
            for part in results.parts
            if other in PARTS[part].heads
            for condition in results.conditions(part)
        ]
        if found:
            told.append(
                f"better than {other} in {found.count('better')} and worse in "
                f"{found.count('worse')} of {len(found)} settings"
            )
    return f"- HL-Gauss is {'; '.join(told)}." if told else ""


# The picture


def draw(rows: Sequence[Row], path: Path) -> None:
    """Draw the readout bias, and what was measured of sigma, capacity and Catch."""
    results = Results(rows)
    drawers: list[Callable[[Results, Any], None]] = [_draw_bias]
    for part, drawer in (
        ("sigma", _draw_sigma),
        ("capacity", _draw_capacity),
        ("catch", _draw_catch),
    ):
        if part in results.parts:
            drawers.append(drawer)
    axes = plots.panels(len(drawers), width=5.4)
    for drawer, ax in zip(drawers, axes, strict=True):
        drawer(results, ax)
    plots.save_figure(axes, path)


def _draw_bias(results: Results, ax: Any) -> None:
    support = Support(0.0, 51.0, 51)  # bins of width 1
    places = torch.linspace(0.0, 10.0, 401, dtype=torch.float64)
    transforms = {f"HL-Gauss, sigma {r:g}": HLGauss(support, r) for r in (0.25, 0.5, 0.75)}
    transforms["two-hot"] = TwoHot(Support(0.0, 50.0, 51))
    biases = {
        name: (transform.decode(transform.encode(places)) - places).numpy()
        for name, transform in transforms.items()
    }
    plots.readout_bias(places.numpy(), biases, title="Readout of a value's own code", ax=ax)


def _ends(columns: Sequence[Numbers]) -> tuple[list[float], tuple[list[float], list[float]]]:
    """Return means and interval ends of columns of seeds."""
    found = [stats.bootstrap_interval(column) for column in columns]
    means, lows, highs = (
        [float(getattr(f, end)) for f in found] for end in ("mean", "low", "high")
    )
    return means, (lows, highs)


def _draw_sigma(results: Results, ax: Any) -> None:
    errors, bands = {}, {}
    for bins in SWEPT_BINS:
        label = f"{bins} bins"
        errors[label], bands[label] = _ends(
            [results.values("sigma", _sigma_condition(bins, r), HL_GAUSS, "rmse") for r in RATIOS]
        )
    baseline = None
    if "regression" in results.parts:
        baseline = (MSE, float(_baseline(results).mean()))
    plots.sigma_sweep(
        RATIOS, errors, intervals=bands, baseline=baseline, title="Sigma, medium map", ax=ax
    )


def _draw_capacity(results: Results, ax: Any) -> None:
    conditions = results.conditions("capacity")
    widths = sorted(int(condition.split()[1]) for condition in conditions)
    curves, bands = {}, {}
    for head in PARTS["capacity"].heads:
        columns = [results.values("capacity", f"width {w}", head, "rmse") for w in widths]
        means, bands[head] = _ends(columns)
        curves[head] = (widths, means)
    plots.learning_curves(
        curves, intervals=bands, ylabel="test error", xlabel="width", title="Capacity", ax=ax
    )
    ax.set_xscale("log", base=2)
    ax.set_xticks(widths, [str(width) for width in widths])


def _draw_catch(results: Results, ax: Any) -> None:
    curves, bands = {}, {}
    for head in BOOTSTRAPPED:
        scores = results.values("catch", "Catch", head, "scores")  # [seeds, evaluations]
        means, bands[head] = _ends(list(scores.T))
        curves[head] = (results.values("catch", "Catch", head, "steps").mean(0), means)
    plots.learning_curves(curves, intervals=bands, ylabel="score", title="Catch", ax=ax)
