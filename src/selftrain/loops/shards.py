"""Append-only files of lines in chunks: a chunk counts once its closing record is there.

A closing record holds the chunk's name, the number of its lines and their digest. What stands
behind the last closing record of a file was cut off by a crash: readers ignore it, and the file's
one writer removes it before it goes on.
"""

import contextlib
import hashlib
import json
import logging
import os
import socket
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from selftrain._core.io import append_bytes, explained_errors, sync_file

try:
    import fcntl
except ImportError:  # not on Windows: nothing guards against a second writer there
    fcntl = None

_LOGGER = logging.getLogger(__name__)
_CLOSING = b'{"closes":'
_LOCK_SECONDS = 5.0  # what a killed process forked may hold its lock a moment longer


@dataclass(frozen=True, slots=True)
class Chunk:
    """The lines between two closing records."""

    name: str
    """What the closing record calls it."""
    lines: tuple[bytes, ...]
    """Each with its newline."""
    path: Path
    """The file."""
    first_line: int
    """The number of the first line in the file, from 1."""
    end: int
    """Where the closing record ends, in bytes from the start of the file."""


def read_chunks(path: Path) -> Iterator[Chunk]:
    """Yield the closed chunks of a shard, one at a time.

    Raises:
        ValueError: If the lines of a closed chunk are not those that were written; the message
            names the file and the line.
    """
    lines: list[bytes] = []
    first = 1
    end = 0
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            end += len(line)
            if not line.endswith(b"\n"):
                return  # torn
            closing = _closing(line)
            if closing is None:
                lines.append(line)
                continue
            if (len(lines), _digest(lines)) != (closing["count"], closing["digest"]):
                raise _damaged(path, lines, first, number, closing)
            yield Chunk(str(closing["closes"]), tuple(lines), path, first, end)
            lines, first = [], number + 1


def shards(folder: Path, kind: str, rank: int | None = None) -> list[Path]:
    """Return the shards of one kind, of one rank or of all, in the order of rank and number."""
    found = {_numbers(path, kind): path for path in folder.glob(f"{kind}-*-*.jsonl")}
    return [found[n] for n in sorted(n for n in found if n and rank in (None, n[0]))]


class ShardWriter:
    """Appends chunks to one rank's shards of one kind.

    Opening it removes what a crash left unclosed. Every chunk is handed to the system in one piece;
    a shard is forced to the disk when the next one begins and when the writer is closed.

    Args:
        folder: Where the shards are.
        kind: The first word of their names.
        rank: Whose they are; no other process may write them.
        shard_bytes: A shard of this size gets no more chunks.
    """

    def __init__(self, folder: Path, kind: str, rank: int, shard_bytes: int) -> None:
        self._folder, self._kind, self._rank = folder, kind, rank
        self._shard_bytes = shard_bytes
        self._number, self._end = 0, 0
        if existing := shards(folder, kind, rank):
            self._number = int(existing[-1].stem.rpartition("-")[2])
            for chunk in read_chunks(existing[-1]):
                self._end = chunk.end
            self._trim()

    @property
    def path(self) -> Path:
        """The shard that is being written."""
        return self._folder / f"{self._kind}-{self._rank:03d}-{self._number:05d}.jsonl"

    def append(self, name: str, lines: Sequence[bytes]) -> None:
        """Write a chunk of lines and its closing record.

        Raises:
            OSError: If that fails, for want of room for example; then nothing of it counts.
        """
        if self._end >= self._shard_bytes:
            self.sync()
            self._number, self._end = self._number + 1, 0
        self._trim()
        record = {"closes": name, "count": len(lines), "digest": _digest(lines)}
        data = b"".join(lines) + json_line(record)
        append_bytes(self.path, data)
        self._end += len(data)

    def sync(self) -> None:
        """Wait until everything is on the disk."""
        if self.path.exists():
            sync_file(self.path)

    def _trim(self) -> None:
        """Remove what stands behind the last closing record."""
        if self.path.exists() and self.path.stat().st_size > self._end:
            os.truncate(self.path, self._end)


@contextlib.contextmanager
def writer_lock(folder: Path, rank: int) -> Iterator[None]:
    """Keep other writers of this rank out of a folder, in this process and in others.

    Raises:
        RuntimeError: If there is one.
        OSError: If nothing can be written there.
    """
    path = folder / f".writer-{rank:03d}.lock"
    with contextlib.ExitStack() as stack:
        with explained_errors(path):
            folder.mkdir(parents=True, exist_ok=True)
            file = stack.enter_context(path.open("a+"))
        deadline = time.monotonic() + _LOCK_SECONDS
        while not _locked(file):
            file.seek(0)
            holder = file.read().strip()
            if time.monotonic() > deadline or holder == _self():
                raise RuntimeError(
                    f"rank {rank} of {folder} is being written by another store (in process "
                    f"{holder or 'unknown'}). Every process needs a rank of its own; close the "
                    "other store, or end its process, before this one writes."
                )
            time.sleep(0.05)
        with explained_errors(path):
            file.truncate(0)
            file.write(_self())
            file.flush()
        yield


def json_line(row: object) -> bytes:
    """Return a value as one line of JSON in ASCII; floats keep their full precision."""
    return json.dumps(row, separators=(",", ":")).encode("ascii") + b"\n"


def _self() -> str:
    return f"{os.getpid()} on {socket.gethostname()}"


def _locked(file: IO[str]) -> bool:
    if fcntl is None:
        return True
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:  # some network file systems know no locks
        _LOGGER.warning("%s cannot be locked (%s); see to it that ranks differ.", file.name, error)
    return True


def _numbers(path: Path, kind: str) -> tuple[int, int] | None:
    """Return the rank and the number of a shard from its name; None if it is no shard."""
    parts = path.stem.removeprefix(f"{kind}-").split("-")
    if len(parts) != 2 or not all(part.isdecimal() for part in parts):
        return None
    return int(parts[0]), int(parts[1])


def _digest(lines: Sequence[bytes]) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for line in lines:
        digest.update(line)
    return digest.hexdigest()


def _closing(line: bytes) -> dict[str, object] | None:
    """Return a line as a closing record; None if it is none."""
    if not line.startswith(_CLOSING):
        return None
    with contextlib.suppress(ValueError):
        record = json.loads(line)
        if record.keys() == {"closes", "count", "digest"}:
            return record
    return None


def _damaged(
    path: Path, lines: Sequence[bytes], first: int, last: int, closing: dict[str, object]
) -> ValueError:
    """Return the error of a chunk whose lines were changed, at the first line that is no JSON."""
    at, why = last, f"{len(lines)} lines do not match its closing record"
    for number, line in enumerate(lines, first):
        try:
            json.loads(line)
        except ValueError as error:
            at, why = number, f"this line is not JSON ({error})"
            break
    return ValueError(
        f"{path}:{at}: chunk {closing['closes']!r} (lines {first} to {last}) is damaged: {why}. "
        "Remove these lines, the last one included, and run the same command again: the chunk is "
        "then made anew."
    )
