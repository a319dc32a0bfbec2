"""Prioritised sampling from a replay buffer of Atari frames, beside torchrl's buffers.

    python benchmarks/replay.py            # some minutes on two cores
    python benchmarks/replay.py --quick    # seconds, to see that it runs

A batch is 32 steps drawn by priority, each with windows of 6 stacks of 4 frames, the return of 10
rewards, the stack 10 steps later and an importance weight; then 32 new priorities are set. Each
method fills a buffer in a process of its own with the same episodes of 1,000 steps, of 84 x 84
bytes a frame. The processes take turns, and the median turn counts. Memory is what the process
holds more after filling than before, for each step that can be learned from.

"torchrl, slices" is its PrioritizedSliceSampler over single frames: slices of the 14 frames that
such a batch needs, put into stacks and returns with views and one product, as one would write it,
without a thought to terminals (its slices keep away from them). "torchrl, single steps" draws 32
steps with one frame each and nothing else, which is less work than the others do. Online, every
batch comes after a new step; it is measured as well.

torchrl's priorities are compiled for one version of torch and missing with others. Its wheel brings
the sources: torch.utils.cpp_extension.load(name="_torchrl", sources=[pybind.cpp, utils.cpp]) makes
the file that belongs into its folder.
"""

import ctypes
import gc
import importlib
import multiprocessing
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import version
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
import tyro
from harness import ROOT, Goal, environment_line, save_rows, table

from selftrain._core.io import read_json, write_text
from selftrain.bench.timing import quartiles
from selftrain.rl import Episode, ReplayBuffer

BATCH, WINDOW, NUM_STEPS, STACK, DISCOUNT = 32, 5, 10, 4, 0.99
EPISODE = 1000
EXPONENT, IMPORTANCE = 0.5, 0.5
WANTED_SPEEDUP, WANTED_BYTES = 1.0, 7100
# Two buffers of a million frames and room for others.
NEEDED_FOR_A_MILLION = 20e9
SLICES, SINGLE = "torchrl, slices", "torchrl, single steps"


@dataclass
class Args:
    """Command line."""

    quick: bool = False
    """Few frames, few repetitions."""
    frames: int | None = None
    """Frames in the buffers; by default a million if memory allows, else 100,000."""
    rounds: int = 15
    """Turns of each method."""
    batches: int = 100
    """Batches in a turn."""
    json: Path = ROOT / "benchmarks/results/replay.json"
    """Where the rows go."""


@dataclass
class Drawn:
    """What every method has to deliver."""

    states: torch.Tensor
    """``[B, 6, 4, 84, 84]``."""
    next_states: torch.Tensor
    """``[B, 4, 84, 84]``."""
    returns: torch.Tensor
    """``[B]``."""
    weights: torch.Tensor
    """``[B]``."""


class Buffer(Protocol):
    """A filled buffer."""

    def add(self) -> None:
        """Store one more step."""

    def batch(self) -> Drawn | None:
        """Draw a batch and set its priorities."""


def episodes(frames: int) -> Iterator[Episode]:
    """Return the episodes that fill a buffer of so many frames; rewards tell their steps."""
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (EPISODE + 1, 84, 84), dtype=np.uint8)
    actions = rng.integers(0, 6, EPISODE)
    for number in range(frames // (EPISODE + 1)):
        pixels[:, 0, 0] = number % 256
        pixels[:, 0, 1] = np.arange(EPISODE + 1) % 256
        yield Episode(pixels, actions, np.arange(EPISODE, dtype=np.float32), True, False)


class Ours:
    """The buffer of this library."""

    def __init__(self, frames: int) -> None:
        self._buffer = ReplayBuffer(
            (84, 84), capacity=frames, stack=STACK, priority_exponent=EXPONENT
        )
        self._rng = torch.Generator().manual_seed(0)
        self._frame = np.zeros((1, 84, 84), dtype=np.uint8)
        self._priorities = torch.rand(BATCH, generator=self._rng) + 0.1
        for episode in episodes(frames):
            self._buffer.append_episodes([episode])

    def add(self) -> None:
        """Store one more step."""
        self._buffer.add(self._frame, [0], [0.0], [False], [False])

    def batch(self) -> Drawn:
        """Draw a batch and set its priorities."""
        drawn = self._buffer.sample(
            BATCH,
            num_steps=NUM_STEPS,
            discount=DISCOUNT,
            importance_exponent=IMPORTANCE,
            window=WINDOW,
            rng=self._rng,
        )
        self._buffer.update_priorities(drawn.indices, self._priorities)
        return Drawn(
            drawn.window.observations, drawn.next_observations, drawn.returns, drawn.weights
        )


class Peer:
    """A buffer of torchrl, with slices of frames or single steps."""

    def __init__(self, frames: int, *, slices: bool) -> None:
        from torchrl.data import LazyTensorStorage, TensorDictReplayBuffer
        from torchrl.data.replay_buffers.samplers import PrioritizedSampler, PrioritizedSliceSampler

        self._slices, self._span = slices, STACK + NUM_STEPS
        options: dict[str, Any] = {"max_capacity": frames, "alpha": EXPONENT, "beta": IMPORTANCE}
        if slices:
            sampler = PrioritizedSliceSampler(
                **options, slice_len=self._span, traj_key="episode", cache_values=True
            )
        else:
            sampler = PrioritizedSampler(**options)
        self._buffer = TensorDictReplayBuffer(
            storage=LazyTensorStorage(frames),
            sampler=sampler,
            batch_size=BATCH * (self._span if slices else 1),
            priority_key="td_error",
        )
        self._rng = torch.Generator().manual_seed(0)
        self._priorities = torch.rand(BATCH, generator=self._rng) + 0.1
        self._powers = DISCOUNT ** torch.arange(NUM_STEPS)
        for number, episode in enumerate(episodes(frames)):
            self._buffer.extend(self._steps(episode, number))

    def _steps(self, episode: Episode, number: int) -> Any:
        from tensordict import TensorDict

        num = len(episode)
        data = {
            "pixels": torch.from_numpy(episode.observations[:-1]),
            "action": torch.from_numpy(episode.actions),
            "reward": torch.from_numpy(episode.rewards),
            "terminated": torch.arange(num) == num - 1,
            "episode": torch.full((num,), number),
        }
        return TensorDict(data, batch_size=[num])

    def add(self) -> None:
        """Store one more step."""
        pixels = np.zeros((2, 84, 84), dtype=np.uint8)
        step = Episode(pixels, np.zeros(1, dtype=np.int64), np.zeros(1, np.float32), True, False)
        self._buffer.extend(self._steps(step, -1))

    def batch(self) -> Drawn | None:
        """Draw a batch and set its priorities."""
        drawn = self._buffer.sample()
        if not self._slices:
            self._buffer.update_priority(drawn["index"], self._priorities)
            return None
        rows = drawn.view(BATCH, self._span)
        frames = rows["pixels"]
        returns = rows["reward"][:, STACK - 1 : -1] @ self._powers
        # The priority of a slice is that of its first frame.
        self._buffer.update_priority(rows["index"][:, 0], self._priorities)
        return Drawn(
            frames[:, : STACK + WINDOW].unfold(1, STACK, 1).movedim(-1, 2),
            frames[:, -STACK:],
            returns,
            rows["priority_weight"][:, 0],
        )


METHODS: dict[str, Callable[[int], Buffer]] = {
    "ours": Ours,
    SLICES: lambda frames: Peer(frames, slices=True),
    SINGLE: lambda frames: Peer(frames, slices=False),
}


def check(drawn: Drawn | None) -> None:
    """Raise unless a batch is of consecutive frames, with the returns that belong to them."""
    if drawn is None:
        return
    steps = drawn.states[:, 0, -1, 0, 1].long()
    offsets = torch.arange(WINDOW + 1)[:, None] + torch.arange(1 - STACK, 1)
    seen = drawn.states[..., 0, 1].long()
    expected = (steps[:, None, None] + offsets) % 256
    inside = seen != 0  # zeros are the end of an episode, or frame 0 itself
    powers = DISCOUNT ** torch.arange(NUM_STEPS)
    difference = drawn.returns - drawn.returns[:, None]
    whole = (drawn.next_states[:, -1, 0, 1].long() - steps) % 256 == NUM_STEPS
    alike = (steps[:, None] == steps) & whole[:, None] & whole
    # Rewards count the steps, of which frames know the rest by 256 alone.
    multiples = (difference / (256 * powers.sum()))[alike]
    if not torch.equal(seen[inside], expected[inside]) or drawn.states.shape[:3] != (
        BATCH,
        WINDOW + 1,
        STACK,
    ):
        raise RuntimeError("the frames of a batch do not follow one another.")
    if (multiples - multiples.round()).abs().max() > 1e-3 or not drawn.weights.max() <= 1.001:
        raise RuntimeError("the returns or the weights of a batch are wrong.")


def serve(name: str, frames: int, pipe: Connection) -> None:
    """Fill a buffer, say what memory it took, then time turns as asked for."""
    warnings.filterwarnings("ignore")
    try:
        if name != "ours":
            importlib.import_module("torchrl")
        METHODS[name](2 * (EPISODE + 1)).batch()  # whatever is loaded at first use
        before, start = resident_bytes(), time.perf_counter()
        buffer = METHODS[name](frames)
        pipe.send({"bytes": resident_bytes() - before, "fill_seconds": time.perf_counter() - start})
        check(buffer.batch())
    except (ImportError, RuntimeError, AttributeError) as error:
        pipe.send({"missing": str(error)})
        return
    while (order := pipe.recv()) is not None:
        online, batches = order
        start = time.perf_counter()
        for _ in range(batches):
            if online:
                buffer.add()
            buffer.batch()
        pipe.send((time.perf_counter() - start) / batches)


def resident_bytes() -> int:
    """Return the memory that this process holds, what the C library keeps free given back."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    status = Path("/proc/self/status").read_text()
    (line,) = (x for x in status.splitlines() if x.startswith("VmRSS:"))
    return 1024 * int(line.split()[1])


def measure(frames: int, rounds: int, batches: int) -> list[dict[str, Any]]:
    """Return one row a method; those that cannot run are told of and left out."""
    context = multiprocessing.get_context("spawn")
    pipes: dict[str, Connection] = {}
    rows: dict[str, dict[str, Any]] = {}
    for name in METHODS:
        mine, theirs = context.Pipe()
        context.Process(target=serve, args=(name, frames, theirs), daemon=True).start()
        filled = mine.recv()
        if "missing" in filled:
            print(f"{name} is not measured: {filled['missing']}")
            continue
        transitions = frames // (EPISODE + 1) * EPISODE
        pipes[name] = mine
        rows[name] = {
            "method": name,
            "frames": frames,
            "bytes_a_transition": filled["bytes"] / transitions,
            "fill_seconds": filled["fill_seconds"],
            "peer_version": version("torchrl") if name != "ours" else None,
        }
    for online, key in ((False, "microseconds"), (True, "online_microseconds")):
        turns: dict[str, list[float]] = {name: [] for name in pipes}
        for turn in range(-1, rounds):
            for name, pipe in pipes.items():
                pipe.send((online, batches if not online else max(1, batches // 10)))
                seconds = pipe.recv()
                if turn >= 0:  # the first warms up
                    turns[name].append(1e6 * seconds)
        for name, times in turns.items():
            spread = quartiles(times)
            rows[name][key] = spread.median
            rows[name][f"{key}_quartiles"] = [spread.low, spread.high]
    for pipe in pipes.values():
        pipe.send(None)
    return list(rows.values())


def goals_of(rows: list[dict[str, Any]]) -> list[Goal]:
    """Return the goals that the rows speak of."""
    ours = next(row for row in rows if row["method"] == "ours")
    goals = [Goal("bytes a transition", ours["bytes_a_transition"], WANTED_BYTES, at_least=False)]
    for row in rows:
        if row is not ours:
            ratio = row["microseconds"] / ours["microseconds"]
            goals.append(Goal(f"{row['method']} / ours", ratio, WANTED_SPEEDUP))
    return goals


def page(rows: list[dict[str, Any]], environment: dict[str, Any]) -> str:
    """Return the table for the docs."""

    def cell(row: dict[str, Any], key: str) -> str:
        low, high = row[f"{key}_quartiles"]
        return f"{row[key]:.0f} ({low:.0f} to {high:.0f})"

    lines = [
        [
            row["method"],
            cell(row, "microseconds"),
            cell(row, "online_microseconds"),
            f"{row['bytes_a_transition']:.0f}",
        ]
        for row in rows
    ]
    columns = ["method", "a batch, us", "a new step and a batch, us", "bytes a transition"]
    peers = rows[-1]["peer_version"] or "not measured"
    return (
        f"*{environment_line(environment)}; torchrl {peers}; {rows[0]['frames']} frames; median "
        f"(quartiles); command `python benchmarks/replay.py`.*\n\n{table(columns, lines)}\n"
    )


def default_frames() -> int:
    """Return how many frames fit in memory beside what others need."""
    lines = Path("/proc/meminfo").read_text().splitlines()
    (free,) = (int(line.split()[1]) for line in lines if line.startswith("MemAvailable:"))
    return 1_000_000 if 1024 * free > NEEDED_FOR_A_MILLION else 100_000


def main(args: Args) -> None:
    frames = args.frames or (5 * (EPISODE + 1) if args.quick else default_frames())
    if args.quick:
        rows = measure(frames, rounds=2, batches=10)
    else:
        rows = measure(frames, args.rounds, args.batches)
    for row in rows:
        print(row)
    goals = goals_of(rows)
    path = args.json.with_stem(args.json.stem + "-quick") if args.quick else args.json
    save_rows(path, rows, seed=0, goals=goals)
    text = page(rows, read_json(path)["environment"])
    if not args.quick:
        write_text(ROOT / "docs/tables/replay.md", text)
    print(text)
    for goal in goals:
        print(goal.line())


if __name__ == "__main__":
    main(tyro.cli(Args))
