"""The order of the data, a pure function of (seed, step): a resumed run needs no loader state."""

import functools

import torch
from torch import Tensor

from selftrain._core.checks import check_int
from selftrain._core.rng import torch_generator


def batch_indices(seed: int, step: int, *, num_items: int, batch_size: int) -> list[int]:
    """Return which items form the batch of step ``step``.

    The items run through one random permutation per epoch, each seeded by its number, one after
    the other without a gap: every item is seen once per epoch, and a batch may span two epochs.

    Example:
        >>> first = batch_indices(0, 0, num_items=4, batch_size=2)
        >>> sorted(first + batch_indices(0, 1, num_items=4, batch_size=2))
        [0, 1, 2, 3]
    """
    check_int("step", step, low=0)
    check_int("num_items", num_items, low=1)
    check_int("batch_size", batch_size, low=1)
    positions = range(step * batch_size, (step + 1) * batch_size)
    return [int(_permutation(seed, i // num_items, num_items)[i % num_items]) for i in positions]


@functools.lru_cache(maxsize=4)
def _permutation(seed: int, epoch: int, num_items: int) -> Tensor:
    return torch.randperm(num_items, generator=torch_generator(seed, "epoch", epoch))
