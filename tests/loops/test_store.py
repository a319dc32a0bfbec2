"""A chunk is in the store as a whole or not at all, whoever wrote it and whatever was cut off."""

import errno
import math
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from selftrain._core import io
from selftrain.loops.sample import Sample, to_row
from selftrain.loops.store import SampleStore
from selftrain.tasks.base import Grade

TEXTS = st.text(max_size=20)


def sample(problem_id="a", index=0, **changes) -> Sample:
    fields = {
        "round": 0,
        "seed": 2**62 + index,
        "text": f"{problem_id} {index}",
        "token_ids": (3, 4, 1),
        "finish_reason": "stop",
        "log_prob": -1 / 3,
        "policy": "p",
        "sampling": "s",
    }
    return Sample(problem_id=problem_id, index=index, **{**fields, **changes})


def chunk(problem_id: str, num: int = 2) -> list[Sample]:
    return [sample(problem_id, i) for i in range(num)]


def only(folder: Path, pattern: str = "samples-*.jsonl") -> Path:
    (path,) = folder.glob(pattern)
    return path


def test_what_is_loaded_is_what_was_appended_in_the_order_of_problems(tmp_path):
    with SampleStore(tmp_path) as store:
        store.append("second", chunk("b"))
        store.append("first", chunk("a")[::-1])
        assert store.load() == chunk("a") + chunk("b")
        assert store.closed_chunks() == {"first", "second"}


@settings(deadline=None)
@given(text=TEXTS | st.just("\ud800 \u2028\n\0"), number=st.floats(allow_nan=False))
def test_texts_and_numbers_come_back_exactly(text, number):
    original = sample(text=text, log_prob=number, token_ids=None)
    with tempfile.TemporaryDirectory() as folder, SampleStore(folder) as store:
        store.append(text, [original])
        (back,) = store.load()
        assert store.closed_chunks() == {text}
    assert to_row(back) == to_row(original)
    assert math.copysign(1, back.log_prob) == math.copysign(1, number)


def test_an_empty_folder_has_no_samples_and_reading_makes_no_files(tmp_path):
    store = SampleStore(tmp_path / "none")
    assert (store.load(), store.closed_chunks(), store.graded_chunks()) == ([], set(), set())
    assert not (tmp_path / "none").exists()


def test_an_empty_chunk_counts_as_done(tmp_path):
    with SampleStore(tmp_path) as store:
        store.append("nothing", [])
        assert store.closed_chunks() == {"nothing"}


def test_grades_are_attached_by_key_whichever_rank_gave_them(tmp_path):
    right, unjudged = Grade(1.0, "correct", level="L1"), Grade(None, "ungradable")
    with SampleStore(tmp_path, rank=1) as one, SampleStore(tmp_path) as zero:
        one.append("x", chunk("a", 3))
        zero.append_grades("x", {(0, "a", 1): right, (0, "a", 2): unjudged})
        assert [s.grade for s in zero.load()] == [None, right, unjudged]
        assert zero.graded_chunks() == one.graded_chunks() == {"x"}


def test_judging_twice_is_tolerated_if_only_the_time_differs(tmp_path):
    with SampleStore(tmp_path) as store:
        store.append("x", [sample()])
        store.append_grades("x", {sample().key: Grade(1.0, "correct", milliseconds=1.0)})
        store.append_grades("y", {sample().key: Grade(1.0, "correct", milliseconds=2.0)})
        assert store.load()[0].grade.milliseconds == 1.0
        store.append_grades("z", {sample().key: Grade(0.0, "wrong")})
        with pytest.raises(ValueError, match=r"grades-000-00000.jsonl:5: the grade .* differs"):
            store.load()


def test_the_same_sample_twice_is_one_and_a_different_one_is_an_error(tmp_path):
    with SampleStore(tmp_path) as zero, SampleStore(tmp_path, rank=1) as one:
        zero.append("x", chunk("a"))
        one.append("x", chunk("a"))
        assert zero.load() == chunk("a")
        one.append("y", [sample("a", 1, text="another")])
        with pytest.raises(ValueError, match=r"samples-001-00000.jsonl:4: .*'a', index 1 differs"):
            zero.load()


def test_two_samples_of_one_key_in_a_chunk_are_refused(tmp_path):
    with (
        SampleStore(tmp_path) as store,
        pytest.raises(ValueError, match=r"two samples with the key \(0, 'a', 0\)"),
    ):
        store.append("x", [sample(), sample()])


@pytest.mark.parametrize("tail", ['{"round":0,', '{"round":0}\n', '{"closes":"y","count":0', "\0"])
def test_an_unclosed_tail_is_ignored_and_removed_by_its_owner(tmp_path, tail):
    with SampleStore(tmp_path) as store:
        store.append("x", chunk("a"))
    whole = only(tmp_path).read_bytes()
    only(tmp_path).write_bytes(whole + tail.encode())
    other = SampleStore(tmp_path, rank=1)
    assert other.closed_chunks() == {"x"}
    assert other.load() == chunk("a")
    assert len(only(tmp_path).read_bytes()) == len(whole) + len(tail), "readers change nothing"
    with SampleStore(tmp_path) as store:
        store.append("y", chunk("b"))
        assert store.load() == chunk("a") + chunk("b")
    assert only(tmp_path).read_bytes().startswith(whole + b'{"round":0,"problem_id":"b"')


def test_files_are_rolled_over_at_their_size_and_continued_after_opening_again(tmp_path):
    for letter in "abcdef":
        with SampleStore(tmp_path, shard_bytes=500) as store:
            store.append(letter, chunk(letter))
    sizes = [p.stat().st_size for p in sorted(tmp_path.glob("samples-*.jsonl"))]
    assert len(sizes) > 1
    assert all(500 <= size < 1000 for size in sizes[:-1])
    assert SampleStore(tmp_path).load() == [s for letter in "abcdef" for s in chunk(letter)]


def test_iterating_gives_what_loading_gives(tmp_path):
    with SampleStore(tmp_path, shard_bytes=500) as store:
        for letter in "ecabd":
            store.append(letter, chunk(letter))
            store.append_grades(letter, {(0, letter, 0): Grade(0.5, "half")})
        found = list(store.iter_samples())
        assert [s.problem_id for s in found[::2]] == list("ecabd")
        assert sorted(found, key=lambda s: s.key) == store.load()


@pytest.mark.parametrize(
    ("old", "new", "line"),
    [
        (b'"b 1"', b'"b 2"', 6),
        (b'"problem_id":"b","index":1', b'"problem_id":"b""index":1', 5),
        (b'"closes":"y"', b'"closes"="y"', 6),
        (b'{"round":0,"problem_id":"b","index":0', b'\n{"round":0,"problem_id":"b","index":0', 4),
    ],
)
def test_a_changed_closed_chunk_is_an_error_that_names_file_and_line(tmp_path, old, new, line):
    with SampleStore(tmp_path) as store:
        for name, letter in zip("xyz", "abc", strict=True):
            store.append(name, chunk(letter))
    path = only(tmp_path)
    path.write_bytes(path.read_bytes().replace(old, new))
    for read in (SampleStore(tmp_path).load, SampleStore(tmp_path).closed_chunks):
        with pytest.raises(ValueError, match=rf"samples-000-00000.jsonl:{line}: .*is damaged"):
            read()


def test_removing_the_lines_that_the_error_names_repairs_the_store(tmp_path):
    with SampleStore(tmp_path) as store:
        for name, letter in zip("xyz", "abc", strict=True):
            store.append(name, chunk(letter))
    lines = only(tmp_path).read_bytes().splitlines(keepends=True)
    only(tmp_path).write_bytes(b"".join(lines[:3] + lines[6:]))
    assert SampleStore(tmp_path).closed_chunks() == {"x", "z"}


def test_a_second_writer_of_a_rank_is_refused_until_the_first_closes(tmp_path):
    with SampleStore(tmp_path) as first:
        first.append("x", chunk("a"))
        second = SampleStore(tmp_path)
        assert second.load() == chunk("a"), "reading needs no lock"
        with pytest.raises(RuntimeError, match=rf"rank 0 of .*{os.getpid()} on .*rank of its own"):
            second.append("y", chunk("b"))
    with second:
        second.append("y", chunk("b"))
        assert second.closed_chunks() == {"x", "y"}


WRITER = """
import sys
from test_store import SampleStore, write_many
with SampleStore(sys.argv[1]) as store:
    write_many(store)
    print("begun", flush=True)
    while True:
        write_many(store)
"""


def write_many(store: SampleStore) -> None:
    """Append twenty chunks with names of the rank's own."""
    first = len(store.closed_chunks())
    for i in range(first, first + 20):
        store.append(f"{store.rank} {i}", chunk(f"{store.rank} {i}"))


def test_processes_write_at_once_and_a_killed_one_leaves_its_rank_free(tmp_path, monkeypatch):
    monkeypatch.setattr("selftrain.loops.shards._LOCK_SECONDS", 0.2)
    paths = [str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]
    with subprocess.Popen(
        [sys.executable, "-c", WRITER, str(tmp_path)],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(paths)},
        stdout=subprocess.PIPE,
    ) as other:
        assert other.stdout.readline() == b"begun\n"
        with pytest.raises(RuntimeError, match=f"process {other.pid} on"):
            SampleStore(tmp_path).append("x", [])
        with SampleStore(tmp_path, rank=1) as store:
            write_many(store)
        other.kill()
    with SampleStore(tmp_path) as store:
        store.append("x", [])
        *names, last = sorted(store.closed_chunks())
        assert last == "x"
        assert {name[0] for name in names} == {"0", "1"}
        assert {s.problem_id for s in store.load()} == set(names)
        assert len(store.load()) == 2 * len(names)


def test_a_chunk_for_which_there_is_no_room_does_not_count(tmp_path, monkeypatch):
    def half(path, mode="r", **kwargs):
        file = real(path, mode, **kwargs)
        if mode == "ab":
            write = file.write

            class Full:
                def __enter__(self):
                    return self

                def __exit__(self, *error):
                    file.close()

                def write(self, data):
                    write(data[: len(data) // 2])
                    file.flush()
                    raise OSError(errno.ENOSPC, "No space left on device")

            return Full()
        return file

    real = Path.open
    with SampleStore(tmp_path) as store:
        store.append("x", chunk("a"))
        with monkeypatch.context() as patch:
            patch.setattr(io.Path, "open", half)
            with pytest.raises(OSError, match="make room") as caught:
                store.append("y", chunk("b"))
        assert caught.value.errno == errno.ENOSPC
        assert store.closed_chunks() == {"x"}
        store.append("y", chunk("b"))
        assert store.load() == chunk("a") + chunk("b")


def test_files_are_forced_to_the_disk_when_they_are_full_and_at_the_end(tmp_path, monkeypatch):
    forced = []
    monkeypatch.setattr("selftrain.loops.shards.sync_file", lambda path: forced.append(path.name))
    with SampleStore(tmp_path, shard_bytes=500) as store:
        for letter in "abcd":
            store.append(letter, chunk(letter))
        assert forced
        assert forced == sorted(p.name for p in tmp_path.glob("samples-*"))[:-1]
    assert forced == sorted(p.name for p in tmp_path.glob("samples-*"))


def test_a_folder_that_cannot_be_made_is_told_with_the_remedy(tmp_path):
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(OSError, match="choose another folder"):
        SampleStore(tmp_path / "file" / "store").append("x", [])


@pytest.mark.parametrize(("name", "value"), [("rank", -1), ("shard_bytes", 0)])
def test_bad_numbers_are_named(tmp_path, name, value):
    with pytest.raises(ValueError, match=f"{name} must satisfy"):
        SampleStore(tmp_path, **{name: value})


class Crashes(RuleBasedStateMachine):
    """Appends by two ranks, with the last file of one cut at any byte between them."""

    @initialize()
    def start(self):
        self.folder = Path(tempfile.mkdtemp())
        self.stores = [SampleStore(self.folder, rank=r, shard_bytes=700) for r in (0, 1)]
        self.num_chunks = 0
        self.wanted: dict[str, list[Sample]] = {}
        self.written: list[list[tuple[str, Path, int]]] = [[], []]  # chunk, file, end

    @rule(rank=st.integers(0, 1), texts=st.lists(TEXTS, max_size=3))
    def append(self, rank, texts):
        name = f"{self.num_chunks}"
        self.num_chunks += 1
        rows = [sample(f"{name:>04}", i, text=text) for i, text in enumerate(texts)]
        self.stores[rank].append(name, rows)
        self.wanted[name] = rows
        path = sorted(self.folder.glob(f"samples-{rank:03d}-*"))[-1]
        self.written[rank].append((name, path, path.stat().st_size))

    @rule(rank=st.integers(0, 1))
    def open_again(self, rank):
        self.stores[rank].close()
        self.stores[rank] = SampleStore(self.folder, rank=rank, shard_bytes=700)

    @rule(rank=st.integers(0, 1), share=st.floats(0, 1), garbage=st.binary(max_size=5))
    def cut(self, rank, share, garbage):
        """Kill a writer: its last file ends at any byte, and a torn write may follow."""
        self.open_again(rank)
        if not self.written[rank]:
            return
        path = self.written[rank][-1][1]
        size = int(share * path.stat().st_size)
        os.truncate(path, size)
        with path.open("ab") as file:
            file.write(garbage.replace(b"\n", b""))
        lost = [w for w in self.written[rank] if w[1] == path and w[2] > size]
        for entry in lost:
            self.written[rank].remove(entry)
            del self.wanted[entry[0]]

    @invariant()
    def the_closed_chunks_and_no_others_are_there(self):
        rows = [s for chunk_rows in self.wanted.values() for s in chunk_rows]
        for store in self.stores:
            assert store.closed_chunks() == self.wanted.keys()
            assert store.load() == sorted(rows, key=lambda s: s.key)

    def teardown(self):
        for store in self.stores:
            store.close()


Crashes.TestCase.settings = settings(max_examples=60, stateful_step_count=20, deadline=None)
TestCrashes = Crashes.TestCase
