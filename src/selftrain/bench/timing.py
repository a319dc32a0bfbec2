"""Time several ways of doing the same work, in turn, so that a machine's drift favours none."""

import contextlib
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

import torch

from selftrain._core.checks import check_int, check_not_empty
from selftrain._core.rng import seeded_torch

ResultT = TypeVar("ResultT")


@dataclass(frozen=True, slots=True)
class Timed(Generic[ResultT]):
    """One timed call."""

    seconds: float
    """Wall-clock time, the device's queue emptied before and after."""
    result: ResultT
    """What the call returned."""
    peak_bytes: int | None
    """Most memory allocated on the device during the call; None on CPUs, which do not say."""


@dataclass(frozen=True, slots=True)
class Quartiles:
    """The middle of some numbers and their spread."""

    low: float
    """First quartile."""
    median: float
    """Second quartile."""
    high: float
    """Third quartile."""

    def text(self, decimals: int = 2) -> str:
        """Return "median (low to high)"."""
        low, mid, high = (f"{x:.{decimals}f}" for x in (self.low, self.median, self.high))
        return f"{mid} ({low} to {high})"


def quartiles(values: Sequence[float]) -> Quartiles:
    """Return the quartiles of ``values``, interpolated between them.

    Raises:
        ValueError: If there are no values.
    """
    check_not_empty("values", values)
    if len(values) == 1:
        return Quartiles(values[0], values[0], values[0])
    low, median, high = statistics.quantiles(values, n=4, method="inclusive")
    return Quartiles(low, median, high)


@contextlib.contextmanager
def pinned_threads(num: int | None) -> Iterator[int]:
    """Let torch use ``num`` threads inside the block (None: as many as before); yield how many."""
    before = torch.get_num_threads()
    if num is not None:
        check_int("threads", num, low=1)
        torch.set_num_threads(num)
    try:
        yield torch.get_num_threads()
    finally:
        torch.set_num_threads(before)


def take_turns(
    methods: Mapping[str, Callable[[int], ResultT]],
    *,
    rounds: int,
    device: torch.device,
    seed: int = 0,
    between: Callable[[int], None] | None = None,
    report: Callable[[int, str], None] | None = None,
) -> dict[str, list[Timed[ResultT]]]:
    """Call every method once a round, after one round whose times are thrown away.

    The first method of a round is another one each time. Torch's global generators are seeded
    alike for all calls of a round, and restored afterwards.

    Args:
        methods: Each is called with the number of the round, -1 in the one for warming up.
        rounds: How many are kept.
        device: Waited for, before and after each call.
        seed: Of the noise.
        between: Called at the end of each round, for what should be measured at the same time.
        report: Called before each call with the round and the method's name.
    """
    check_int("rounds", rounds, low=1)
    kept: dict[str, list[Timed[ResultT]]] = {name: [] for name in methods}
    names = list(methods)
    for turn in range(-1, rounds):
        first = turn % len(names)
        for name in names[first:] + names[:first]:
            if report is not None:
                report(turn, name)
            with seeded_torch(seed, "round", turn):
                timed = _timed(methods[name], turn, device)
            if turn >= 0:
                kept[name].append(timed)
        if between is not None:
            between(turn)
    return kept


def milliseconds(part: Callable[[], object], device: torch.device) -> float:
    """Return how long one call takes, the device's queue emptied before and after."""
    return 1000 * _timed(lambda _: part(), 0, device).seconds


def _timed(method: Callable[[int], ResultT], argument: int, device: torch.device) -> Timed[ResultT]:
    on_gpu = device.type == "cuda"
    if on_gpu:
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
    start = time.perf_counter()
    result = method(argument)
    if on_gpu:
        torch.cuda.synchronize(device)
    seconds = time.perf_counter() - start
    return Timed(seconds, result, torch.cuda.max_memory_allocated(device) if on_gpu else None)
