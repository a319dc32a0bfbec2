"""The card of a data set of samples: what is in it and where it came from."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import groupby

from selftrain.loops.sample import Sample
from selftrain.tasks.base import Task


def sample_card(
    samples: Sequence[Sample], manifest: Mapping[str, object], task: Task | None = None
) -> str:
    """Return the text of a ``README.md`` with a header that the hub reads.

    Args:
        samples: At least one.
        manifest: What ``export.json`` holds: the format and the digest.
        task: What the samples are of, if it is known.
    """
    ordered = sorted(samples, key=lambda sample: sample.key)
    named = "" if task is None else f" of `{task.name}`"
    lines = [
        *_header(manifest["format"]),
        "",
        f"# Sampled solutions{'' if task is None else f' of {task.name}'}",
        "",
        f"Completions of problems{named}, written by a language model, judged by a program with "
        "[selftrain](https://selftrain.readthedocs.io). Every row is one completion.",
        "",
        *_counts(ordered),
        "",
        "## Where it came from",
        "",
        "The fingerprints are those in the columns `policy` (the weights) and `sampling` (the "
        "parameters); each completion was drawn from its own `seed`.",
        "",
        "| policy | sampling | samples |",
        "|---|---|---|",
        *_provenance(ordered),
        "",
        f"Digest of the samples (SHA-256, in order of round, problem and index): "
        f"`{manifest['digest']}`",
        "",
        "## Columns",
        "",
        *_columns(task is not None),
        "",
        "## Limits",
        "",
        "A score says that the final answer or the tests passed, not that the reasoning is right: "
        "some completions reach a right answer by wrong steps. The texts are unedited output of a "
        "model.",
        "",
        "## Licence",
        "",
        "Not stated yet. The terms of the model that wrote the texts and of the problems apply: "
        "write them here, and into `license` in the header, before you publish this.",
        "",
    ]
    return "\n".join(lines)


def _header(format: object) -> list[str]:
    # Folders of save_to_disk are no repository of the hub's; only files are named.
    files = {"parquet": "samples.parquet", "jsonl": "samples.jsonl"}.get(str(format))
    configs = ["configs:", "- config_name: default", f"  data_files: {json.dumps(files)}"]
    return [
        "---",
        "license: unknown",
        "task_categories:",
        "- text-generation",
        "tags:",
        "- synthetic",
        "- selftrain",
        *(configs if files else []),
        "---",
    ]


def _counts(ordered: Sequence[Sample]) -> list[str]:
    """Return a table with a line for every round."""
    lines = [
        "| round | problems | samples | judged | pass rate | solved | cut off | mean tokens |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for round, group in groupby(ordered, key=lambda sample: sample.round):
        rows = list(group)
        problems = {s.problem_id for s in rows}
        scores = [s.score for s in rows if s.score is not None]
        solved = {s.problem_id for s in rows if s.score == 1}
        lengths = [len(s.token_ids) for s in rows if s.token_ids is not None]
        cells = [
            f"{round}",
            f"{len(problems)}",
            f"{len(rows)}",
            f"{len(scores)}",
            _mean(scores, ".3f"),
            f"{len(solved) / len(problems):.3f}",
            f"{sum(s.finish_reason == 'length' for s in rows) / len(rows):.3f}",
            _mean(lengths, ".1f"),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return [
        *lines,
        "",
        "Judged: those that have a score; the pass rate is its mean over these. Solved: the share "
        "of problems with at least one score of 1. Cut off: the share ended by the token budget.",
    ]


def _provenance(ordered: Sequence[Sample]) -> list[str]:
    origins = Counter((s.policy, s.sampling) for s in ordered)
    return [f"| `{p}` | `{s}` | {count} |" for (p, s), count in origins.items()]


def _columns(has_problems: bool) -> list[str]:
    columns = {
        "round, problem_id, index": "the key of a sample",
        "seed": "what its noise was drawn from",
        "text, token_ids": "the completion",
        "finish_reason": "`stop`, `length` (cut off) or `error`",
        "log_prob": "the sum of its tokens' log-probabilities under the law sampled from",
        "policy, sampling": "fingerprints of the weights and the parameters",
        "score": "from 0 to 1; empty where it could not be judged",
        "status, detail, milliseconds, level": "the judgement; all empty where there was none",
    }
    if has_problems:
        columns["prompt, answer"] = "what the model read, and the reference answer"
    return [
        f"- {', '.join(f'`{n}`' for n in names.split(', '))}: {meaning}."
        for names, meaning in columns.items()
    ]


def _mean(values: Sequence[float], form: str) -> str:
    return format(sum(values) / len(values), form) if values else "–"
