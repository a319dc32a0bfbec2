"""The report of a loop's run: tables, pictures and the card of the model."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import rich.table
from rich import box
from rich.console import Console

from selftrain._core.card import card_header, loading_code, settings_of, value_table
from selftrain._core.config import to_dict
from selftrain._core.io import write_text
from selftrain.cli._loop_tables import (
    ROUND_COLUMNS,
    evaluation_rows,
    label,
    measured_tasks,
    percent,
    round_cells,
    rounds_of,
    verifier_rows,
)
from selftrain.cli._loops import SCRATCH, Parts, Run
from selftrain.loops.evaluate import Measure
from selftrain.loops.rest_em import START
from selftrain.loops.round import LoopResult
from selftrain.loops.verifier_report import VerifierReport
from selftrain.report import Block, Heading, Image, Table, Text, write_report

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_PAPERS = {
    "ReST-EM": "https://arxiv.org/abs/2312.06585",
    "V-STaR": "https://arxiv.org/abs/2402.06457",
}


GENERATOR, VERIFIER = "Generator", "Verifier"
"""What the models of V-STaR are called; that of the other methods is a generator too."""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """All that a report is made of."""

    method: str
    """ "ReST-EM" or "V-STaR"."""
    parts: Parts
    """What the run was made of."""
    config: Any
    """Its settings."""
    run: Run
    """Its tasks."""
    result: LoopResult
    """Its rounds."""
    reports: Mapping[str, VerifierReport]
    """What the verifier is worth, by task; empty without a verifier."""
    models: Mapping[str, Path]
    """The folders of the models that came of it, by what they are."""


def write_outcome(folder: Path, outcome: Outcome) -> Path:
    """Draw the pictures, write the report and the models' cards; return the report's path."""
    pictures = _draw(folder, outcome)
    result = outcome.result
    head, rows = evaluation_rows(result)
    rounds = [round_cells(round) for round in rounds_of(result)]
    blocks: list[Block] = [
        Text(_summary(outcome)),
        Heading("Rounds"),
        Table(list(ROUND_COLUMNS), rounds, _ROUNDS_CAPTION),
        Heading("Measures"),
        Table(head, rows, _measures_caption(result)),
        *[picture for name, picture in pictures.items() if name in ("accuracy", "gap")],
    ]
    for name, report in outcome.reports.items():
        head, rows = verifier_rows(report)
        blocks += [
            Heading(f"Choosing among candidates: {name}"),
            Table(head, rows, _verifier_caption(report)),
            pictures[f"verifier-{name}"],
        ]
    settings = settings_of(to_dict(outcome.parts)) | settings_of(to_dict(outcome.config))
    blocks += [Heading("Settings"), Table(["setting", "value"], list(settings.items()))]
    for what, path in outcome.models.items():
        write_text(path / "README.md", _card(what, outcome))
    title = f"{outcome.method} on {outcome.parts.problems.task}"
    return write_report(folder, title, blocks)


def show_outcome(outcome: Outcome, report: Path) -> None:
    """Print the measures of all rounds, and where everything lies."""
    console = Console()
    result = outcome.result
    _show_table(console, *evaluation_rows(result))
    for task, found in outcome.reports.items():
        console.print(f"Choosing among {found.num_candidates} candidates, {task} problems:")
        _show_table(console, *verifier_rows(found))
    lines = [f"Ended because {result.stopped}. Best on validation: {_best(result)}."]
    lines += [f"{what}: {path}" for what, path in outcome.models.items()]
    for line in [*lines, f"Report: {report}"]:
        console.print(line, soft_wrap=True, highlight=False, markup=False)


def _show_table(console: Console, head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    table = rich.table.Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for number, name in enumerate(head):
        table.add_column(name, justify="left" if number == 0 else "right")
    for row in rows:
        # The intervals are in the report: all columns are to fit into a terminal.
        table.add_row(*(cell.partition(" (")[0] for cell in row))
    console.print(table)


_ROUNDS_CAPTION = (
    "Right: mean score of the samples. Solved: training problems with a right one. Kept: rows "
    "trained on. False: share of the kept samples that the stricter grader refuses, where there is "
    "one. Validation, test, train: pass@1 of the greedy answer in per cent, with a 95 % "
    "interval by bootstrap over problems; train is a fixed choice of the training problems."
)


def _summary(outcome: Outcome) -> str:
    result, tasks = outcome.result, outcome.run.tasks
    sizes = [f"{len(tasks.train):,} training", f"{len(tasks.validation):,} validation"]
    sizes += [] if tasks.test is None else [f"{len(tasks.test):,} test"]
    lines = [
        f"`{outcome.parts.model}` on `{outcome.parts.problems.task}`: "
        f"{', '.join(sizes)} problems. Best on validation: **{_best(result)}**.",
        f"It ended because {result.stopped}.",
        *(f"- {what}: `{path}`" for what, path in outcome.models.items()),
    ]
    return "\n\n".join(lines[:2]) + "\n\n" + "\n".join(lines[2:])


def _best(result: LoopResult) -> str:
    return "the start" if result.best.number == START else f"round {result.best.number}"


def _measures_caption(result: LoopResult) -> str:
    one = result.start.evaluations["validation"]
    more = ""
    if one.num_samples:
        more = (
            f" pass@k is the chance that one of k samples is right, Maj@k that their most frequent "
            f"answer is, both from {one.num_samples} samples a problem."
        )
    return f"In per cent, with 95 % intervals. pass@1 is that of the greedy answer.{more}"


def _verifier_caption(report: VerifierReport) -> str:
    largest = max(report.pass_at_k)
    gains = [f"over one answer at random {percent(report.best_over_one[largest])}"]
    if report.best_over_majority:
        gains.append(f"over the majority vote {percent(report.best_over_majority[largest])}")
    return (
        f"{report.num_candidates} candidates of each of {report.num_problems} problems. The "
        f"verifier's choice of {largest} by log_prob, problem by problem, in points: "
        f"{'; '.join(gains)}."
    )


def _draw(folder: Path, outcome: Outcome) -> dict[str, Image]:
    from selftrain import plots

    result = outcome.result
    name = measured_tasks(result)[0]
    found = {"accuracy": _accuracy(folder, outcome, name), "gap": _gap(folder, result, name)}
    for task, report in outcome.reports.items():
        curves = {
            "pass@k": report.pass_at_k,
            "verifier": report.best_of_k["log_prob"],
            "majority vote": report.majority_at_k,
            "weighted vote": report.weighted_majority_at_k,
        }
        curves = {way: table for way, table in curves.items() if table}
        ax = plots.metrics_against_k(
            list(report.pass_at_k),
            {way: [m.mean for m in table.values()] for way, table in curves.items()},
            intervals={way: _ends(list(table.values())) for way, table in curves.items()},
            ylabel=f"{task} problems solved",
        )
        found[f"verifier-{task}"] = _picture(
            folder,
            ax,
            f"verifier-{task}",
            "Share of problems solved against the number of candidates, by who chooses.",
            "Bands: 95 % intervals over problems.",
        )
    return found


def _accuracy(folder: Path, outcome: Outcome, name: str) -> Image:
    """Draw every measure of a task by round."""
    from selftrain import plots

    rounds = rounds_of(outcome.result)
    evaluations = [round.evaluations[name] for round in rounds]
    largest = max(max(e.pass_at_k, default=0) for e in evaluations)
    series: dict[str, list[Measure | None]] = {"pass@1": [e.greedy for e in evaluations]}
    if largest > 1:
        series[f"pass@{largest}"] = [e.pass_at_k.get(largest) for e in evaluations]
        series[f"Maj@{largest}"] = [e.majority_at_k.get(largest) for e in evaluations]
    report = outcome.reports.get(name)
    if report is not None:
        k = max(report.pass_at_k)
        # The verifier is trained once, after the last round.
        series[f"verifier@{k}"] = [None] * (len(rounds) - 1) + [report.best_of_k["log_prob"][k]]
    series = {what: row for what, row in series.items() if any(row)}
    ax = plots.metrics_by_round(
        [label(round) for round in rounds],
        {what: [None if m is None else m.mean for m in row] for what, row in series.items()},
        intervals={what: _ends(row) for what, row in series.items()},
        ylabel=f"{name} problems solved",
    )
    alt = f"Measures on the {name} problems by round."
    return _picture(folder, ax, "accuracy", alt, "Bars: 95 % intervals over problems.")


def _gap(folder: Path, result: LoopResult, name: str) -> Image:
    """Draw pass@1 on held-out problems and on those trained on."""
    from selftrain import plots

    rounds = rounds_of(result)
    held_out = [round.evaluations[name].greedy for round in rounds]
    ax = plots.metrics_by_round(
        [label(round) for round in rounds],
        {"pass@1": [m.mean for m in held_out]},
        intervals={"pass@1": _ends(held_out)},
        train={"pass@1": [r.evaluations["train"].greedy.mean for r in rounds]},
        ylabel=f"{name} problems solved",
    )
    alt = f"pass@1 on {name} problems and on training problems by round."
    caption = "Where the dashed line rises and the full one does not, the model only memorises."
    return _picture(folder, ax, "train_and_test", alt, caption)


def _picture(folder: Path, ax: "Axes", name: str, alt: str, caption: str) -> Image:
    from selftrain import plots

    plots.save_figure(ax, folder / f"{name}.png")
    return Image(f"{name}.png", alt, caption)


def _ends(row: Sequence[Measure | None]) -> tuple[list[float | None], list[float | None]]:
    """Return the ends of intervals; where there is none, as with one problem, the mean itself."""

    def end(measure: Measure | None, value: float) -> float | None:
        if measure is None:
            return None
        return value if math.isfinite(value) else measure.mean

    return [end(m, m.low if m else 0.0) for m in row], [end(m, m.high if m else 0.0) for m in row]


def _card(what: str, outcome: Outcome) -> str:
    parts, base = outcome.parts, outcome.parts.model
    kind = {"has_adapters": parts.lora_rank is not None}
    named = "A small model from scratch" if base == SCRATCH else f"`{base}`"
    settings = settings_of(to_dict(parts)) | settings_of(to_dict(outcome.config))
    is_verifier = what == VERIFIER
    lines = [
        *card_header(base, tags=("self-training",), **kind),
        "",
        f"# {base.rstrip('/').rsplit('/', 1)[-1]}, {what.lower()} of {outcome.method}",
        "",
        f"{named} trained on its own answers to `{parts.problems.task}` with "
        f"[selftrain](https://selftrain.readthedocs.io), by "
        f"[{outcome.method}]({_PAPERS[outcome.method]}).",
        "",
        "## Loading",
        "",
        *(_VERIFIER_CODE if is_verifier else loading_code(base, **kind)),
        "",
        *(_verifier_measures(outcome) if is_verifier else _round_measures(outcome.result)),
        "",
        "## Settings",
        "",
        *value_table(settings, "setting"),
        "",
    ]
    return "\n".join(lines)


_VERIFIER_CODE = [
    "```python",
    "from selftrain import Verifier",
    "",
    'verifier = Verifier.load("...")  # this folder',
    "best = verifier.best(prompt, completions)  # the place of the best one",
    "```",
]


def _round_measures(result: LoopResult) -> list[str]:
    caption = _measures_caption(result)
    return ["## Measured, by round", "", *_markdown(*evaluation_rows(result)), "", caption]


def _verifier_measures(outcome: Outcome) -> list[str]:
    lines = ["## Measured, by number of candidates k"]
    for task, report in outcome.reports.items():
        table = _markdown(*verifier_rows(report))
        lines += ["", f"Solved {task} problems in per cent:", "", *table]
        lines += ["", _verifier_caption(report)]
    return lines


def _markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    rule = "|---" * len(head) + "|"
    return [f"| {' | '.join(head)} |", rule, *(f"| {' | '.join(row)} |" for row in rows)]
