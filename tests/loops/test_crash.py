"""A run killed at any moment, and started again, ends as if nothing had happened."""

import contextlib
import functools
import json
import os
import random
import select
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from selftrain import SamplingParams
from selftrain.loops.generate import Draw, generate
from selftrain.loops.sample import to_row
from selftrain.loops.shards import read_chunks, shards
from selftrain.loops.store import SampleStore

SHORT = SamplingParams(max_new_tokens=3)
SCRIPT = Path(__file__).parent / "crash_loop.py"


class Processes:
    """Starts runs, and kills them."""

    def __init__(self, server: subprocess.Popen) -> None:
        self._answers, self._questions = server.stdout, server.stdin

    def live(self, job: str, folder: Path, seconds: float = float("inf")) -> tuple[int, float]:
        """Do a job in a folder and kill it once it has had a processor for so long.

        Other programs take their share of the machine, and a life must be long enough for the
        longest step that is done whole or not at all, so that the clock on the wall is no measure.

        Returns:
            The exit code, and the seconds it had a processor.
        """
        self._questions.write(f"{job} {folder}\n".encode())
        self._questions.flush()
        pid = int(self._answers.readline())
        while not select.select([self._answers], [], [], 0.002)[0]:
            with contextlib.suppress(OSError):  # it has just ended
                if processor_seconds(pid) > seconds:
                    os.kill(pid, signal.SIGKILL)
                    break
        code, used = self._answers.readline().split()
        return int(code), float(used)


def processor_seconds(pid: int) -> float:
    """Return for how long a process has been executed; OSError if there is none."""
    return int(Path(f"/proc/{pid}/schedstat").read_text().split()[0]) / 1e9


@pytest.fixture(scope="module")
def processes(make_llama, char_tokenizer, tmp_path_factory) -> Iterator[Processes]:
    folder = tmp_path_factory.mktemp("model")
    make_llama().save_pretrained(folder)
    char_tokenizer.save_pretrained(folder)
    with subprocess.Popen(
        [sys.executable, str(SCRIPT), str(folder)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        bufsize=0,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    ) as server:
        assert server.stdout.readline() == b"ready\n"
        yield Processes(server)
        server.kill()


@pytest.fixture(scope="module")
def uninterrupted(processes, tmp_path_factory) -> Callable[[str], tuple[Path, float]]:
    """Return the folder of a job that nobody killed, and the processor seconds it took."""

    @functools.cache
    def do(job: str) -> tuple[Path, float]:
        folder = tmp_path_factory.mktemp("uninterrupted")
        code, seconds = processes.live(job, folder)
        assert code == 0
        return folder, seconds

    return do


def stores(folder: Path) -> list[Path]:
    """Return the folders of all stores of a run."""
    return sorted({path.parent for path in folder.rglob("samples-*-*.jsonl")})


def closed(folder: Path) -> dict[tuple[str, str, str], tuple[bytes, ...]]:
    """Return the lines of every closed chunk of a run, by store, kind and chunk."""
    return {
        (str(store.relative_to(folder)), kind, chunk.name): chunk.lines
        for store in stores(folder)
        for kind in ("samples", "grades")
        for path in shards(store, kind)
        for chunk in read_chunks(path)
    }


def results(folder: Path) -> dict[str, object]:
    """Return all that a run leaves, but for the times that things took."""
    found: dict[str, object] = {
        str(path.relative_to(folder)): path.read_bytes()
        for name in ("train.jsonl", "groups.jsonl", "model.safetensors")
        for path in folder.rglob(name)
    }
    for path in [*folder.rglob("metrics.json"), *folder.rglob("report-*.json")]:
        row = json.loads(path.read_text())
        row.pop("seconds", None)
        found[str(path.relative_to(folder))] = row
    for store in stores(folder):
        rows = [to_row(sample) for sample in SampleStore(store).load()]
        for row in rows:
            row["grade"]["milliseconds"] = 0.0
        found[str(store.relative_to(folder))] = rows
    return found


def keys(folder: Path) -> list[tuple[object, ...]]:
    """Return the key of every line of samples, of whichever rank and chunk."""
    return [
        (store.relative_to(folder), row["round"], row["problem_id"], row["index"])
        for store in stores(folder)
        for path in shards(store, "samples")
        for row in map(json.loads, path.read_text().splitlines())
        if "closes" not in row
    ]


def killed_until_done(
    processes: Processes, jobs: Sequence[str], folder: Path, rng: random.Random, longest: float
) -> int:
    """Do jobs in turn until all are done, killed again and again; return how often."""
    folder.mkdir()
    before: dict = {}
    left = list(jobs)
    for lives in range(100):
        job = left[lives % len(left)]
        code, _ = processes.live(job, folder, rng.uniform(0, longest))
        now = closed(folder)
        assert before.items() <= now.items(), "what was closed stays, and stays as it is"
        before = now
        journal = (folder / "journal").read_text() if (folder / "journal").exists() else ""
        num_chunks = sum(1 for _, kind, _ in now if kind == "samples")
        assert journal.count("written") <= num_chunks, "nothing is lost that was handed over"
        assert journal.count("asked") <= num_chunks + lives + 1, "a kill costs a chunk at most"
        if code == 0:
            left.remove(job)
        else:
            assert code == -signal.SIGKILL
        if not left:
            return lives + 1 - len(jobs)
    raise AssertionError("a hundred lives, and no end in sight")


def check(folder: Path, uninterrupted: Path) -> None:
    found, expected = results(folder), results(uninterrupted)
    assert found.keys() == expected.keys()
    assert [name for name in expected if found[name] != expected[name]] == []
    assert len(set(keys(folder))) == len(keys(folder))
    assert set(keys(folder)) == set(keys(uninterrupted))


def test_a_run_killed_a_few_times_ends_as_if_nothing_had_happened(
    processes, uninterrupted, tmp_path
):
    folder, seconds = uninterrupted("restem")
    names = {name.split("/", 1)[1] for name in results(folder)}
    assert names >= {f"rounds/00{i}/{n}" for i in (0, 1) for n in ("train.jsonl", "hinted")}
    rng = random.Random(0)  # two lives of at most 0.4 of the whole are not enough
    assert killed_until_done(processes, ["restem"], tmp_path / "killed", rng, seconds / 2.5) >= 2
    check(tmp_path / "killed", folder)


def test_two_ranks_killed_in_turn_draw_what_one_does(processes, uninterrupted, tmp_path):
    folder, seconds = uninterrupted("0/1")
    rng = random.Random(0)
    kills = killed_until_done(processes, ["0/2", "1/2"], tmp_path / "killed", rng, seconds / 2.5)
    assert kills >= 2
    assert {path.name[:11] for path in (tmp_path / "killed" / "run").glob("samples-*")} == {
        "samples-000",
        "samples-001",
    }
    check(tmp_path / "killed", folder)


@pytest.mark.slow
@pytest.mark.parametrize("job", ["restem", "vstar"])
def test_a_hundred_kills_change_nothing(processes, uninterrupted, tmp_path, job):
    folder, seconds = uninterrupted(job)
    rng = random.Random(1)
    kills = runs = 0
    while kills < 100:
        kills += killed_until_done(processes, [job], tmp_path / f"{runs}", rng, seconds / 2)
        check(tmp_path / f"{runs}", folder)
        runs += 1


def test_what_was_sampled_and_not_graded_is_graded_before_anything_is_made_of_it(
    make_task, digit_sampler, tmp_path
):
    """A kill between a chunk's samples and its grades must not make its problems look unsolved."""
    task, draw = make_task(), Draw(round=0, num_samples=2, params=SHORT, seed=0, policy="p")
    with SampleStore(tmp_path) as store:
        generate(store, task, digit_sampler, draw, chunk_size=3, judge=False, show_progress=False)
        digit_sampler.calls.clear()
        generate(store, task, digit_sampler, draw, chunk_size=3, show_progress=False)
        assert not digit_sampler.calls
        assert all(sample.score is not None for sample in store.load())
