"""The samples of one round on disk, written by several processes, killed at any time."""

import contextlib
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from selftrain._core.checks import check_int
from selftrain._core.config import to_dict
from selftrain.loops.sample import Sample, SampleKey, from_row, grade_from_row, to_row
from selftrain.loops.shards import (
    Chunk,
    ShardWriter,
    json_line,
    read_chunks,
    shards,
    writer_lock,
)
from selftrain.tasks.base import Grade

_SAMPLES, _GRADES = "samples", "grades"


class SampleStore:
    """Keeps the samples and grades of one round in a folder, as JSONL files that only grow.

    The unit of work is a chunk: it is there as a whole or not at all, and what is missing after a
    crash is the chunks wanted less those closed. Each process writes files of its own
    (``samples-<rank>-<shard>.jsonl``, ``grades-<rank>-<shard>.jsonl``); reading merges those of all
    ranks, whoever wrote them. Samples and grades are handed to the system chunk by chunk, which
    survives a killed process, and forced to the disk shard by shard, for a loss of power.

    Nothing is written or locked before the first append, so that a store may be read while others
    write. From then on no other store may append as the same rank until this one is closed.

    Args:
        folder: Where the files are; made when it is needed.
        rank: The process's number; no two writers share one.
        shard_bytes: A file of this size gets no more chunks.

    Example:
        >>> import tempfile
        >>> sample = Sample(round=0, problem_id="a", index=0, seed=1, text="2", token_ids=None,
        ...     finish_reason="stop", log_prob=None, policy="p", sampling="s")
        >>> with tempfile.TemporaryDirectory() as folder, SampleStore(folder) as store:
        ...     store.append("0", [sample])
        ...     store.append_grades("0", {sample.key: Grade(1.0, "correct")})
        ...     [s.score for s in store.load()], store.closed_chunks()
        ([1.0], {'0'})
    """

    def __init__(self, folder: str | Path, *, rank: int = 0, shard_bytes: int = 2**26) -> None:
        check_int("rank", rank, low=0)
        check_int("shard_bytes", shard_bytes, low=1)
        self.folder = Path(folder)
        self.rank = rank
        self._shard_bytes = shard_bytes
        self._writers: dict[str, ShardWriter] = {}
        self._lock = contextlib.ExitStack()

    def closed_chunks(self) -> set[str]:
        """Return the names of the chunks whose samples are all there, by whichever rank."""
        return {chunk.name for chunk in self._chunks(_SAMPLES)}

    def graded_chunks(self) -> set[str]:
        """Return the names of the chunks whose grades are all there."""
        return {chunk.name for chunk in self._chunks(_GRADES)}

    def append(self, chunk: str, samples: Sequence[Sample]) -> None:
        """Write a chunk of samples; their grades, if they have any, are kept with them.

        Raises:
            ValueError: If two of the samples have one key.
            RuntimeError: If another store writes as this rank.
            OSError: If it cannot be written, for want of room for example; then none of it counts.
        """
        seen: set[SampleKey] = set()
        for sample in samples:
            if sample.key in seen:
                raise ValueError(
                    f"chunk {chunk!r} has two samples with the key {sample.key}; number the "
                    "completions of a problem by their index."
                )
            seen.add(sample.key)
        self._writer(_SAMPLES).append(chunk, [json_line(to_row(sample)) for sample in samples])

    def append_grades(self, chunk: str, grades: Mapping[SampleKey, Grade]) -> None:
        """Write the grades of a chunk's samples.

        Raises:
            RuntimeError: If another store writes as this rank.
            OSError: If it cannot be written; then none of it counts.
        """
        rows = [{"key": key, "grade": to_dict(grade)} for key, grade in grades.items()]
        self._writer(_GRADES).append(chunk, [json_line(row) for row in rows])

    def load(self) -> list[Sample]:
        """Return all samples of closed chunks with their grades, sorted by problem id and index.

        Raises:
            ValueError: If a file is damaged, or one key has two samples or scores that differ.
        """
        return sorted(self.iter_samples(), key=lambda sample: sample.key)

    def iter_samples(self) -> Iterator[Sample]:
        """Yield what :meth:`load` returns in the order of the files, a chunk in memory at a time.

        Grades, and sixteen bytes for every sample, are held throughout.
        """
        grades = self._grades()
        seen: dict[SampleKey, bytes] = {}
        for chunk in self._chunks(_SAMPLES):
            for number, line in enumerate(chunk.lines, chunk.first_line):
                sample = from_row(json.loads(line))
                digest = hashlib.blake2b(line, digest_size=16).digest()
                if sample.key not in seen:
                    seen[sample.key] = digest
                    yield sample.graded(grades[sample.key]) if sample.key in grades else sample
                elif seen[sample.key] != digest:
                    raise _conflict(chunk, number, sample.key, "sample")

    def close(self) -> None:
        """Force everything to the disk and let another store write as this rank."""
        try:
            for writer in self._writers.values():
                writer.sync()
        finally:
            self._writers.clear()
            self._lock.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _grades(self) -> dict[SampleKey, Grade]:
        grades: dict[SampleKey, Grade] = {}
        for chunk in self._chunks(_GRADES):
            for number, line in enumerate(chunk.lines, chunk.first_line):
                row = json.loads(line)
                round, problem_id, index = row["key"]
                key, grade = (round, problem_id, index), grade_from_row(row["grade"])
                # Only the score: how long judging took differs from time to time.
                if grades.setdefault(key, grade).score != grade.score:
                    raise _conflict(chunk, number, key, "grade")
        return grades

    def _chunks(self, kind: str) -> Iterator[Chunk]:
        for path in shards(self.folder, kind):
            yield from read_chunks(path)

    def _writer(self, kind: str) -> ShardWriter:
        if not self._writers:
            self._lock.enter_context(writer_lock(self.folder, self.rank))
        if kind not in self._writers:
            self._writers[kind] = ShardWriter(self.folder, kind, self.rank, self._shard_bytes)
        return self._writers[kind]


def _conflict(chunk: Chunk, number: int, key: SampleKey, what: str) -> ValueError:
    return ValueError(
        f"{chunk.path}:{number}: the {what} of round {key[0]}, problem {key[1]!r}, index {key[2]} "
        f"differs from an earlier one (chunk {chunk.name!r}). Two runs with different settings or "
        "weights wrote into this folder; give each a folder of its own."
    )
