"""Files that a user names as a source: text and rows, compressed or not, local or on the hub."""

import gzip
import json
import re
import zlib
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from selftrain._core.checks import check_not_empty

_ROW_SUFFIXES = (".jsonl", ".json", ".parquet")


@dataclass(frozen=True, slots=True)
class SourceRows:
    """The rows of a data set, and what to call the part they are."""

    rows: tuple[dict[str, Any], ...]
    """All of them, in the order of the source."""
    part: str
    """The split, or the name of the file without its endings."""
    is_file: bool
    """Whether a single file was named, which is read whole."""


def read_rows(
    source: str | Path, *, split: str, configs: Sequence[str | None] = (None,)
) -> SourceRows:
    """Read the rows of a data set.

    Args:
        source: A ``.jsonl``, ``.json`` (a list of objects) or ``.parquet`` file, the first two also
            with ``.gz``; a folder with such a file for each split (``train.jsonl``,
            ``train-00000-of-00002.parquet``); or the name of a data set on the Hugging Face hub,
            ``"name"`` or ``"name:config"``.
        split: Which part of a folder or of a hub data set.
        configs: The configurations that are read where the hub name has none, one after another.

    Raises:
        FileNotFoundError: If ``source`` is written like a path and nothing is there, or a folder
            has no file for the split.
        OSError: If a file cannot be read.
        ValueError: If a file holds something else than rows, or none, or the hub name cannot be
            loaded.
    """
    check_not_empty("source", str(source))
    path = Path(source).expanduser()
    if path.is_dir():
        rows = [row for file in _split_files(path, split) for row in _read_file(file)]
    elif path.is_file():
        rows = _read_file(path)
    elif looks_like_path(source, _ROW_SUFFIXES):
        raise FileNotFoundError(f"source: there is no file or folder {path} (in {Path.cwd()}).")
    else:
        rows = _hub(str(source), split, configs)
    if not rows:
        raise ValueError(f"source: {source} has no rows (split {split!r}).")
    part = path.name.removesuffix(".gz").rpartition(".")[0] if path.is_file() else split
    return SourceRows(tuple(rows), part, path.is_file())


def read_text(path: Path) -> str:
    r"""Return the UTF-8 text of a file, decompressed if its name ends in ``.gz``.

    A byte order mark is dropped, and line ends become ``\n``.

    Raises:
        OSError: If it cannot be read.
        ValueError: If it is not UTF-8.
    """
    try:
        data = path.read_bytes()
        data = gzip.decompress(data) if path.suffix == ".gz" else data
    except (OSError, EOFError, zlib.error) as error:
        kind = type(error) if isinstance(error, OSError) else OSError
        raise kind(f"source: could not read {path}: {error}") from error
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"source: {path} is not UTF-8 text (byte {error.start} is {data[error.start]:#04x}). "
            "Convert it, for example with: iconv -f latin1 -t utf-8"
        ) from error
    return text.replace("\r\n", "\n")


def looks_like_path(source: str | Path, suffixes: Collection[str]) -> bool:
    """Return whether a source is written like a path, and not like the name of a hub data set."""
    return (
        isinstance(source, Path)
        or source.startswith((".", "~", "/", "\\"))
        or re.match(r"[A-Za-z]:[\\/]", source) is not None
        or source.removesuffix(".gz").endswith(tuple(suffixes))
    )


def _split_files(folder: Path, split: str) -> list[Path]:
    pattern = re.compile(
        re.escape(split) + r"(-[0-9]+-of-[0-9]+)?\.(jsonl(\.gz)?|json(\.gz)?|parquet)"
    )
    found = sorted(path for path in folder.iterdir() if pattern.fullmatch(path.name))
    if not found:
        names = ", ".join(sorted(path.name for path in folder.iterdir())[:20]) or "nothing"
        raise FileNotFoundError(
            f"source: the folder {folder} has no file for the split {split!r}, such as "
            f"{split}.jsonl; it holds {names}. Name another split, or the file itself."
        )
    return found


def _read_file(path: Path) -> list[dict[str, Any]]:
    kind = Path(path.name.removesuffix(".gz")).suffix
    if kind not in _ROW_SUFFIXES:
        allowed = ", ".join(_ROW_SUFFIXES)
        raise ValueError(f"source: {path} must end in {allowed} (the first two also + .gz).")
    if kind == ".parquet":
        import pyarrow.parquet

        return pyarrow.parquet.read_table(path).to_pylist()
    text = read_text(path)
    if kind == ".json":
        rows = _parse(text, str(path))
        if not isinstance(rows, list):
            raise ValueError(f"source: {path} must be a JSON list, got {type(rows).__name__}.")
        return [_checked(row, f"{path}, element {i}") for i, row in enumerate(rows)]
    lines = [(n, line) for n, line in enumerate(text.split("\n"), 1) if line.strip()]
    return [_checked(_parse(line, f"{path}:{n}"), f"{path}:{n}") for n, line in lines]


def _parse(text: str, place: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"source: {place} is not JSON: {error}") from error


def _checked(row: Any, place: str) -> dict[str, Any]:
    if not isinstance(row, dict):
        raise ValueError(f"source: {place} must be a JSON object, got {type(row).__name__}.")
    return row


def _hub(source: str, split: str, configs: Sequence[str | None]) -> list[dict[str, Any]]:
    import datasets

    name, _, config = source.partition(":")
    rows: list[dict[str, Any]] = []
    for one in (config,) if config else configs:
        try:
            rows += datasets.load_dataset(name, one, split=split).to_list()
        except Exception as error:  # each cause has its own type there; the name is the user's
            reason = str(error).strip().split("\n")[0]
            raise ValueError(
                f"source: {source!r} is no file or folder (in {Path.cwd()}), and could not be "
                f"loaded from the hub as data set {name!r}, config {one!r}, split {split!r}: "
                f"{type(error).__name__}: {reason}"
            ) from error
    return rows
