"""Text for language models: an embedded default, local files, the hub; and its split by hash."""

import importlib
import json
import os
import sysconfig
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from selftrain._core.checks import check_int, check_not_empty, check_range
from selftrain._core.rng import derive
from selftrain.tasks.files import looks_like_path, read_text

EMBEDDED_SOURCES = ("python", "python-core", "python-docs")
"""The sources that every Python installation brings along; see :func:`load_corpus`."""

_TEXT_SUFFIXES = (".txt", ".md", ".py")
_SUFFIXES = (*_TEXT_SUFFIXES, ".jsonl")
_SKIPPED_PARTS = {"site-packages", "dist-packages", "test", "tests", "idle_test", "encodings"}
# Tables written by programs: they teach a language model nothing and weigh hundreds of kilobytes.
_SKIPPED_FILES = {"html/entities.py", "locale.py", "pydoc_data/topics.py", "stringprep.py"}
_SKIPPED_PREFIXES = ("_sysconfigdata", "_sysconfig_vars")  # hold paths of the build machine
_MIN_DOCUMENTS = 100
_SECTION_CHARACTERS = 4000


@dataclass(frozen=True, slots=True)
class Document:
    """One text and the name it goes by in its corpus."""

    id: str
    """Where the text comes from: ``stdlib/json/decoder.py``, ``notes.jsonl:12``."""
    text: str
    """The text; valid Unicode (no lone surrogates)."""


@dataclass(frozen=True, slots=True)
class CorpusSplit:
    """Three parts of a corpus that share no document and no exact copy of one."""

    train: tuple[Document, ...]
    """What the models are trained on."""
    validation: tuple[Document, ...]
    """What decisions are made on: learning rates, when to stop."""
    test: tuple[Document, ...]
    """What the reported numbers are measured on."""


def load_corpus(
    source: str | Path = "python",
    *,
    text_column: str = "text",
    split: str = "train",
    max_characters: int | None = None,
) -> list[Document]:
    """Load the documents of a corpus, in an order that does not depend on the machine.

    Three sources are embedded, that is, read from the running Python installation, with no
    download (sizes for CPython 3.11):

    - ``"python"``: documentation topics and all of the standard library's modules; 10 M characters.
    - ``"python-core"``: the topics and the top-level modules only (``argparse.py``, not
      ``json/decoder.py``); 5 M characters. The narrowest text that still gives a small model
      minutes of fresh training data.
    - ``"python-docs"``: the topics only; 0.5 M characters. Models overfit it quickly.

    Tests, generated tables and installed packages are left out of them. Any other source is a
    ``.txt``, ``.md``, ``.py`` (one document) or ``.jsonl`` file (a document a row), each also with
    ``.gz``; a folder, searched recursively for such files, hidden ones left out; or a dataset on
    the Hugging Face hub by name, ``"name"`` or ``"name:config"``. Texts of white space only are
    left out everywhere.

    Args:
        source: An embedded source, a path, or the name of a hub dataset.
        text_column: The field of JSONL rows and hub rows that holds the text.
        split: The split of a hub dataset; slices such as ``"train[:1%]"`` keep large ones small.
        max_characters: Keep at most so many characters: whole documents, spread over the corpus
            by a hash of their ids. Only if no document fits is one cut.

    Raises:
        FileNotFoundError: If ``source`` is a path that does not exist.
        OSError: If a file cannot be read.
        ValueError: If a file is not UTF-8 text, a row lacks ``text_column``, there is no text at
            all, or ``source`` is neither an existing path nor a dataset that can be loaded.

    Example:
        >>> topics = load_corpus("python-docs")
        >>> topics[0].id
        'topics/assert'
    """
    check_not_empty("source", str(source))
    if max_characters is not None:
        check_int("max_characters", max_characters, low=1)
    if str(source) in EMBEDDED_SOURCES and not isinstance(source, Path):
        documents = _embedded(source)
    elif (path := Path(source).expanduser()).exists():
        documents = _local(path, text_column)
    elif looks_like_path(source, _SUFFIXES):
        raise FileNotFoundError(f"source: there is no file or folder {path} (in {Path.cwd()}).")
    else:
        documents = _hub(str(source), text_column, split)
    documents = [d for d in documents if d.text and not d.text.isspace()]
    if not documents:
        raise ValueError(f"source: {source} holds no text (empty, or white space only).")
    return documents if max_characters is None else _sample(documents, max_characters)


def split_corpus(
    documents: Sequence[Document],
    *,
    validation_fraction: float = 0.05,
    test_fraction: float = 0.05,
    seed: int = 0,
) -> CorpusSplit:
    """Split documents into train, validation and test by a hash of each one's text.

    Where a document goes depends on its text and ``seed`` alone: exact copies fall on one side,
    and documents added later move no other. The fractions are probabilities, so the parts'
    sizes vary by chance. With fewer than 100 documents (a single book) the unit is a section
    instead of a document, as cut by :func:`cut_sections`; a corpus that grows past 100 is split
    anew.

    Args:
        documents: The corpus.
        validation_fraction: Probability of a document to be held out for validation, in (0, 1).
        test_fraction: Probability of a document to be held out for testing, in (0, 1).
        seed: Another seed gives another, independent split.

    Raises:
        ValueError: If ``documents`` is empty, the fractions do not leave a train part, or one of
            the three parts comes out empty.
    """
    check_not_empty("documents", documents)
    for name, value in (
        ("validation_fraction", validation_fraction),
        ("test_fraction", test_fraction),
        ("validation_fraction + test_fraction", validation_fraction + test_fraction),
    ):
        check_range(name, value, low=0.0, low_open=True, high=1.0, high_open=True)
    if len(documents) < _MIN_DOCUMENTS:
        documents = cut_sections(documents)
    parts: dict[str, list[Document]] = {"train": [], "validation": [], "test": []}
    for document in documents:
        u = derive(seed, "split", document.text) / 2**63
        held_out = "test" if u < test_fraction else "validation"
        parts[held_out if u < test_fraction + validation_fraction else "train"].append(document)
    for name, part in parts.items():
        if not part:
            sizes = ", ".join(f"{k} {len(v)}" for k, v in parts.items())
            raise ValueError(
                f"the {name} part of the corpus is empty ({len(documents)} documents fell into: "
                f"{sizes}). Give more text, larger fractions (now validation_fraction="
                f"{validation_fraction}, test_fraction={test_fraction}), another seed, or cut the "
                "documents with cut_sections first."
            )
    return CorpusSplit(**{name: tuple(part) for name, part in parts.items()})


def cut_sections(
    documents: Sequence[Document], *, characters: int = _SECTION_CHARACTERS
) -> list[Document]:
    """Cut long documents into sections at paragraph borders; their texts joined give it back.

    A paragraph longer than ``characters`` is cut at the end of a line, a longer line anywhere.
    Sections are named ``<id>#0000``, ``<id>#0001``, ...; documents that fit are left alone.

    Args:
        documents: The documents to cut.
        characters: The largest size of a section.

    Raises:
        ValueError: If ``characters`` is not positive.
    """
    check_int("characters", characters, low=1)
    result: list[Document] = []
    for document in documents:
        if len(document.text) <= characters:
            result.append(document)
            continue
        texts = _sections(document.text, characters)
        result += [Document(f"{document.id}#{i:04}", text) for i, text in enumerate(texts)]
    return result


def _sections(text: str, characters: int) -> Iterator[str]:
    start = 0
    while len(text) - start > characters:
        window = text[start : start + characters]
        borders = (window.rfind("\n\n") + 2, window.rfind("\n") + 1)
        # rfind gives -1 where there is no border, and a border at the very start cuts nothing off.
        end = next((b for b, least in zip(borders, (2, 1), strict=True) if b >= least), characters)
        yield window[:end]
        start += end
    yield text[start:]


def _embedded(source: str) -> list[Document]:
    documents = _topics()
    if source != "python-docs":
        root = Path(sysconfig.get_path("stdlib"))
        pattern = "*.py" if source == "python-core" else "**/*.py"
        documents += _stdlib(root, pattern)
    if not documents:
        raise ValueError(
            f"source: this Python installation ({sysconfig.get_path('stdlib')}) has neither "
            "pydoc_data.topics nor the library's sources; some distributions ship them in a "
            "package of their own. Install that, or give a text file, a folder or a dataset."
        )
    return documents


def _topics() -> list[Document]:
    try:
        topics = importlib.import_module("pydoc_data.topics").topics
    except ImportError:
        return []
    return [Document(f"topics/{name}", topics[name]) for name in sorted(topics)]


def _stdlib(root: Path, pattern: str) -> list[Document]:
    documents = []
    for path in sorted(root.glob(pattern), key=lambda p: p.relative_to(root).as_posix()):
        relative = path.relative_to(root)
        if (
            _SKIPPED_PARTS.isdisjoint(relative.parts)
            and relative.as_posix() not in _SKIPPED_FILES
            and not relative.name.startswith(_SKIPPED_PREFIXES)
        ):
            try:
                text = path.read_text(encoding="utf-8")
            except (OSError, UnicodeDecodeError):  # a few modules are Latin-1 on purpose
                continue
            documents.append(Document(f"stdlib/{relative.as_posix()}", text))
    return documents


def _local(path: Path, text_column: str) -> list[Document]:
    if path.is_file():
        if _suffix(path) not in _SUFFIXES:
            raise ValueError(f"source: {path} must end in {', '.join(_SUFFIXES)} (or that + .gz).")
        return _read_file(path, path.name, text_column)
    files = {file.relative_to(path).as_posix(): file for file in _text_files(path)}
    if not files:
        raise ValueError(
            f"source: the folder {path} holds no text files ({', '.join(_SUFFIXES)}, or + .gz)."
        )
    return [d for name in sorted(files) for d in _read_file(files[name], name, text_column)]


def _text_files(folder: Path) -> Iterator[Path]:
    def unreadable(error: OSError) -> None:
        raise type(error)(f"source: could not read {error.filename}: {error.strerror}") from error

    for root, folders, names in os.walk(folder, onerror=unreadable):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in names:
            if not name.startswith(".") and _suffix(Path(name)) in _SUFFIXES:
                yield Path(root, name)


def _suffix(path: Path) -> str:
    return Path(path.name.removesuffix(".gz")).suffix.lower()


def _read_file(path: Path, name: str, text_column: str) -> list[Document]:
    text = read_text(path)
    if _suffix(path) in _TEXT_SUFFIXES:
        return [Document(name, text)]
    return [
        Document(f"{name}:{number}", _row_text(f"{path}:{number}", line, text_column))
        for number, line in enumerate(text.split("\n"), 1)
        if line.strip()
    ]


def _row_text(place: str, line: str, text_column: str) -> str:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"source: {place} is not JSON: {error}") from error
    if not isinstance(row, dict):
        raise ValueError(f"source: {place} is not a JSON object but {type(row).__name__}.")
    if text_column not in row:
        raise ValueError(_no_column(place, text_column, list(row)))
    return _checked_text(place, text_column, row[text_column])


def _no_column(place: str, text_column: str, columns: Sequence[str]) -> str:
    return (
        f"source: {place} has no column {text_column!r}; it has {', '.join(columns) or 'none'}. "
        "Name the one that holds the text with text_column."
    )


def _checked_text(place: str, text_column: str, value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError(
            f"source: {place}: {text_column!r} must be a string, got {type(value).__name__}."
        )
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:  # JSON can spell half of a surrogate pair
        raise ValueError(
            f"source: {place}: {text_column!r} is not valid Unicode: {error}"
        ) from error
    return value


def _hub(source: str, text_column: str, split: str) -> list[Document]:
    import datasets

    name, _, config = source.partition(":")
    try:
        dataset: Any = datasets.load_dataset(name, config or None, split=split)
    except Exception as error:  # each cause has its own type there; the name is the user's
        reason = str(error).strip().split("\n")[0]
        raise ValueError(
            f"source: {source!r} is no embedded source ({', '.join(EMBEDDED_SOURCES)}), no file or "
            f"folder (in {Path.cwd()}), and could not be loaded from the hub as dataset {name!r}, "
            f"config {config or None!r}, split {split!r}: {type(error).__name__}: {reason}"
        ) from error
    if text_column not in dataset.column_names:
        raise ValueError(_no_column(f"dataset {source}", text_column, dataset.column_names))
    return [
        Document(f"{name}/{split}/{i}", _checked_text(f"{source} row {i}", text_column, text))
        for i, text in enumerate(dataset[text_column])
    ]


def _sample(documents: Sequence[Document], max_characters: int) -> list[Document]:
    """Keep documents in the order of a hash of their ids while they fit, then in corpus order."""
    # Ids, not texts: a sample taken by the hash that also splits would not be a fair one.
    order = sorted(range(len(documents)), key=lambda i: derive(0, "sample", documents[i].id))
    kept, total = [], 0
    for i in order:
        if total + len(documents[i].text) <= max_characters:
            kept.append(i)
            total += len(documents[i].text)
    if not kept:
        first = documents[order[0]]
        return [Document(first.id, next(_sections(first.text, max_characters)))]
    return [documents[i] for i in sorted(kept)]
