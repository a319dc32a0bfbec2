"""Rows to distil on from a JSONL file, a folder or the hub."""

import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from selftrain._core.checks import check_not_empty
from selftrain.training.finetune import Rows

_SUFFIXES = (".jsonl", ".json", ".ndjson")


def load_rows(
    source: str | Path,
    *,
    split: str = "train",
    prompt_column: str = "prompt",
    completion_column: str = "completion",
) -> Rows:
    """Load rows for :meth:`Distiller.fit <selftrain.distill.Distiller.fit>`.

    Args:
        source: A JSONL file, a folder or a hub name that ``datasets`` reads (``name:config``).
        split: Which part of a folder or a hub data set.
        prompt_column: The column that holds prompts: text, or a list of chat messages.
        completion_column: The column that holds completions.

    Returns:
        Rows with the columns named ``prompt`` and ``completion``; other columns are kept.

    Raises:
        FileNotFoundError: If ``source`` is written like a path and nothing is there.
        ValueError: If a line is no JSON object, or a column is missing.
    """
    path = Path(source)
    names = {"prompt": prompt_column, "completion": completion_column}
    if path.is_file():
        return _read_lines(path, names)
    if not path.is_dir() and (
        path.suffix in _SUFFIXES or str(source).startswith((".", "/", "~")) or path.is_absolute()
    ):
        raise FileNotFoundError(
            f"dataset: there is no file or folder {str(source)!r} (looked in {Path.cwd()})."
        )
    dataset = _load_dataset(str(source), split)
    _check_columns(f"dataset {source}", dataset.column_names, names)
    return _Renamed(dataset, names)


class _Renamed:
    """Gives rows of a data set under our names of the columns."""

    def __init__(self, dataset: Any, names: Mapping[str, str]) -> None:
        self._dataset, self._names = dataset, names

    def __len__(self) -> int:
        return len(self._dataset)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return _renamed(self._dataset[index], self._names)


def _read_lines(path: Path, names: Mapping[str, str]) -> list[dict[str, Any]]:
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        raise ValueError(f"dataset: {path} is not UTF-8 text: {error}") from error
    rows = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        place = f"{path}:{number}"
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(
                f"dataset: {place} is not JSON: {error}. Each line must be one object."
            ) from error
        if not isinstance(row, dict):
            raise ValueError(f"dataset: {place} must be a JSON object, got {line.strip()[:60]!r}.")
        _check_columns(place, row, names)
        rows.append(_renamed(row, names))
    check_not_empty("dataset", rows)
    return rows


def _check_columns(place: str, columns: Collection[str], names: Mapping[str, str]) -> None:
    """Raise unless a column named by the user is there, and text or ids in any case."""
    missing = [name for part, name in names.items() if name != part and name not in columns]
    if not missing and not {*names.values(), "prompt_ids", "completion_ids"} & set(columns):
        missing = [names["prompt"]]
    if missing:
        raise ValueError(
            f"dataset: {place} has no column {missing[0]!r}; it has "
            f"{', '.join(columns) or 'none'}. Name the right ones with prompt_column and "
            "completion_column (--prompt-column, --completion-column)."
        )


def _renamed(row: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    found = dict(row)
    # All are read before any is written, so that columns may change places.
    found |= {part: row.get(name) for part, name in names.items() if name in row or part in row}
    if found.get("weight", 0) is None:  # ``datasets`` fills columns that some rows lack
        del found["weight"]
    return found


def _load_dataset(source: str, split: str) -> Any:
    import datasets

    name, _, config = (source, "", "") if Path(source).is_dir() else source.partition(":")
    try:
        if (Path(name) / "state.json").exists() or (Path(name) / "dataset_dict.json").exists():
            found: Any = datasets.load_from_disk(name)
            return found[split] if isinstance(found, datasets.DatasetDict) else found
        return datasets.load_dataset(name, config or None, split=split)
    except Exception as error:  # each cause has its own type there; the name is the user's
        reason = str(error).strip().split("\n")[0]
        raise ValueError(
            f"dataset: {source!r} is no JSONL file (looked in {Path.cwd()}), and `datasets` could "
            f"not load it with split {split!r}: {type(error).__name__}: {reason}"
        ) from error
