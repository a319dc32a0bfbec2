"""Which process reads which answers in which forward pass: a pure function of the step's groups."""

from collections.abc import Sequence
from dataclasses import dataclass

from selftrain.training.batch import TokenRow
from selftrain.training.preference_loss import PreferenceGroup
from selftrain.training.row_scores import row_length, token_batches


@dataclass(frozen=True, slots=True)
class Part:
    """Whole groups whose answers are read together, or one group that needs several passes."""

    groups: tuple[int, ...]
    """Their numbers in the step."""
    rows: tuple[TokenRow, ...]
    """All their answers in turn."""
    passes: tuple[tuple[int, ...], ...]
    """The numbers of the rows of each forward pass; if there is one, all in turn."""

    @property
    def is_split(self) -> bool:
        """Whether no pass sees all rows, so that they are read once before they are weighed."""
        return len(self.passes) > 1


@dataclass(frozen=True, slots=True)
class Plan:
    """One process's parts of a step, and how many passes the busiest process makes."""

    parts: tuple[Part, ...]
    """What this process reads."""
    num_passes: int
    """Passes with gradient."""
    num_readings: int
    """Passes without, beforehand."""
    num_groups: int
    """Most groups of a process."""


def make_plan(
    groups: Sequence[PreferenceGroup],
    *,
    rank: int,
    world: int,
    max_tokens: int,
    by_prompt: bool,
) -> Plan:
    """Divide a step's groups among processes and forward passes.

    Args:
        groups: The step's groups, the same on all processes.
        rank: The process.
        world: How many there are.
        max_tokens: Tokens in a forward pass, padding included.
        by_prompt: Whether rows of one prompt are read together.
    """
    all_parts = [
        _parts(groups, mine, max_tokens, by_prompt=by_prompt) for mine in _shares(groups, world)
    ]
    passes = [sum(len(part.passes) for part in parts) for parts in all_parts]
    readings = [sum(len(p.passes) for p in parts if p.is_split) for parts in all_parts]
    counts = [sum(len(part.groups) for part in parts) for parts in all_parts]
    return Plan(tuple(all_parts[rank]), max(passes), max(readings), max(counts))


def _shares(groups: Sequence[PreferenceGroup], world: int) -> list[list[int]]:
    """Give each group, heaviest first, to the process that has least to read."""
    tokens = [sum(map(row_length, group.rows)) for group in groups]
    shares: list[list[int]] = [[] for _ in range(world)]
    loads = [0] * world
    for i in sorted(range(len(groups)), key=lambda i: -tokens[i]):
        least = loads.index(min(loads))
        shares[least].append(i)
        loads[least] += tokens[i]
    return shares


def _parts(
    groups: Sequence[PreferenceGroup], mine: Sequence[int], max_tokens: int, *, by_prompt: bool
) -> list[Part]:
    widths = {i: max(map(row_length, groups[i].rows)) for i in mine}
    together: list[list[int]] = []
    room = 0
    for i in sorted(mine, key=lambda i: -widths[i]):
        num_rows = sum(groups[k].num_sequences for k in together[-1]) if together else 0
        # Sorted by width: the first group of a part is its widest.
        if together and (num_rows + groups[i].num_sequences) * room <= max_tokens:
            together[-1].append(i)
        else:
            together.append([i])
            room = widths[i]
    parts = []
    for numbers in together:
        rows = tuple(row for i in numbers for row in groups[i].rows)
        passes = [list(range(len(rows)))]
        if len(rows) * widths[numbers[0]] > max_tokens:
            passes = token_batches(rows, max_tokens, by_prompt=by_prompt)
        parts.append(Part(tuple(numbers), rows, tuple(map(tuple, passes))))
    return parts
