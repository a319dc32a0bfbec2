"""Samples as a data set: Arrow tables, folders to publish, and back."""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from selftrain._core.checks import check_choice, check_not_empty
from selftrain._core.config import to_dict
from selftrain._core.io import (
    atomic_folder,
    read_json,
    read_jsonl,
    write_json,
    write_jsonl,
    write_text,
)
from selftrain.loops.sample import Sample, from_row, to_row
from selftrain.loops.sample_card import sample_card
from selftrain.loops.shards import json_line
from selftrain.tasks.base import Grade, Task

if TYPE_CHECKING:
    import datasets

_MANIFEST = "export.json"
_FORMATS = ("parquet", "arrow", "jsonl")
_GRADE = tuple(f.name for f in fields(Grade))
_OWN = tuple(f.name for f in fields(Sample) if f.name != "grade")


def samples_dataset(samples: Iterable[Sample], task: Task | None = None) -> "datasets.Dataset":
    """Return samples as a table with a row for each, the grade's fields as columns.

    Args:
        samples: In the order of the rows. A sample without a grade has an empty ``status``.
        task: Adds the columns ``prompt``, as the model read it, and ``answer``.

    Raises:
        ValueError: If a sample's problem is not in ``task``, or some prompts are text and others
            chat messages.
    """
    import datasets

    rows = [_flat(sample) for sample in samples]
    features = _features()
    if task is not None:
        prompts, answers = _prompts(rows, task)
        for row in rows:
            row["prompt"] = prompts[row["problem_id"]]
            row["answer"] = answers[row["problem_id"]]
        is_text = all(isinstance(prompt, str) for prompt in prompts.values())
        message = {"role": datasets.Value("string"), "content": datasets.Value("string")}
        features["prompt"] = datasets.Value("string") if is_text else datasets.List(message)
        features["answer"] = datasets.Value("string")
    columns = {name: [row[name] for row in rows] for name in features}
    return datasets.Dataset.from_dict(columns, features=features)


def export_samples(
    samples: Iterable[Sample],
    folder: str | Path,
    *,
    format: Literal["parquet", "arrow", "jsonl"] = "parquet",
    problems: Task | None = None,
    card: bool = True,
) -> Path:
    """Write samples to a folder that ``datasets.load_dataset`` and the hub read.

    The folder is there as a whole or not at all. Beside the data it has ``export.json`` (counts and
    a digest of the samples) and, with ``card``, a ``README.md`` for the hub.

    Args:
        samples: What to write, such as ``SampleStore(...).load()``.
        folder: Where to; an earlier export there is replaced.
        format: "arrow" is for ``datasets.load_from_disk``.
        problems: Adds prompts and answers to the rows.
        card: Write the card.

    Returns:
        The folder.

    Raises:
        FileExistsError: If ``folder`` has something in it that is no export.
        ValueError: If there are no samples, or their problems are not all in ``problems``.
        OSError: If it cannot be written; then nothing is there, or what was before.
    """
    check_choice("format", format, _FORMATS)
    folder, samples = Path(folder), list(samples)
    check_not_empty("samples", samples)
    if folder.exists() and not (folder / _MANIFEST).exists() and any(folder.iterdir()):
        raise FileExistsError(
            f"folder: {folder} has files in it that are no export of samples, and an export "
            "replaces the whole folder; name a new one."
        )
    dataset: Any = samples_dataset(samples, problems)
    manifest = {"format": format, "num_samples": len(samples), "digest": samples_digest(samples)}
    with atomic_folder(folder) as part:
        if format == "arrow":
            dataset.save_to_disk(str(part))
        elif format == "parquet":
            dataset.to_parquet(str(part / "samples.parquet"))
        else:
            write_jsonl(part / "samples.jsonl", (dict(row) for row in dataset))
        write_json(part / _MANIFEST, manifest)
        if card:
            write_text(part / "README.md", sample_card(samples, manifest, problems))
    return folder


def load_samples(path: str | Path) -> list[Sample]:
    """Read the samples of a folder that :func:`export_samples` wrote, or of one file of it.

    Args:
        path: The folder, or a ``.parquet`` or ``.jsonl`` file with the same columns; others are
            ignored.

    Raises:
        FileNotFoundError: If nothing is there.
        ValueError: If it is no export, or its samples are not those that were written.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"path: there is no file or folder {path}.")
    if path.is_file():
        return [_sample(row, path) for row in _read_file(path)]
    if not (path / _MANIFEST).exists():
        raise ValueError(
            f"path: {path} has no {_MANIFEST}, so it is no folder that export_samples wrote. Name "
            "the file with the samples, or use SampleStore for the folder of a run."
        )
    manifest = read_json(path / _MANIFEST)
    kind = manifest["format"]
    rows = _read_disk(path) if kind == "arrow" else _read_file(path / f"samples.{kind}")
    samples = [_sample(row, path) for row in rows]
    if samples_digest(samples) != manifest["digest"]:
        raise ValueError(
            f"path: the samples of {path} are not those that were written (their digest differs "
            f"from that in {_MANIFEST}). If the change was meant, name the file instead of the "
            "folder."
        )
    return samples


def samples_digest(samples: Sequence[Sample]) -> str:
    """Return a digest of samples that does not depend on their order."""
    digest = hashlib.sha256()
    for sample in sorted(samples, key=lambda sample: sample.key):
        digest.update(json_line(to_row(sample)))
    return digest.hexdigest()


def _features() -> Any:
    """Return the types of the columns, which do not depend on what the first rows hold."""
    import datasets

    kinds = dict.fromkeys((*_OWN, *_GRADE), "string")
    kinds |= dict.fromkeys(("round", "index", "seed"), "int64")
    kinds |= dict.fromkeys(("log_prob", "score", "milliseconds"), "float64")
    features = {name: datasets.Value(kind) for name, kind in kinds.items()}
    return datasets.Features(features | {"token_ids": datasets.List(datasets.Value("int64"))})


def _flat(sample: Sample) -> dict[str, Any]:
    row = to_row(sample)
    grade = row.pop("grade")
    return row | (dict.fromkeys(_GRADE) if grade is None else to_dict(sample.grade))


def _sample(row: Mapping[str, Any], path: Path) -> Sample:
    missing = [name for name in (*_OWN, *_GRADE) if name not in row]
    if missing:
        raise ValueError(
            f"path: {path} has no column {missing[0]!r}; it has {', '.join(row)}. Completions from "
            "elsewhere are read by import_completions."
        )
    grade = None if row["status"] is None else {name: row[name] for name in _GRADE}
    return from_row({name: row[name] for name in _OWN} | {"grade": grade})


def _prompts(
    rows: Sequence[Mapping[str, Any]], task: Task
) -> tuple[dict[str, Any], dict[str, str | None]]:
    """Return prompt and answer of every problem that rows are of."""
    problems = task.by_id()
    wanted = dict.fromkeys(row["problem_id"] for row in rows)
    unknown = [name for name in wanted if name not in problems]
    if unknown:
        raise ValueError(
            f"problems: the task {task.name!r} has no problem {unknown[0]!r} ({len(unknown)} are "
            "missing); pass the task that the samples are of."
        )
    prompts = {name: task.prompt(problems[name]) for name in wanted}
    if len({isinstance(prompt, str) for prompt in prompts.values()}) > 1:
        raise ValueError(
            "problems: some prompts are text and some chat messages, and a column has one type; "
            "export without problems, or one kind at a time."
        )
    return prompts, {name: problems[name].answer for name in wanted}


def _read_file(path: Path) -> Iterable[Mapping[str, Any]]:
    check_choice("the suffix of path", path.suffix, (".parquet", ".jsonl"))
    if path.suffix == ".jsonl":
        return read_jsonl(path, complete=True)
    import pyarrow.parquet

    return pyarrow.parquet.read_table(path).to_pylist()


def _read_disk(path: Path) -> Iterable[Mapping[str, Any]]:
    import datasets

    dataset: Any = datasets.load_from_disk(str(path))
    return dataset
