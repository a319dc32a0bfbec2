"""A sum tree: drawing from many weights in proportion to them, in a few tensor operations.

Shape letters: B batch, F children of a node.
"""

import torch
from torch import Tensor

from selftrain._core.checks import check_int

# Few levels of wide nodes: a level costs the same handful of operations whatever its width.
_FANOUT = 128
# The largest double below 1.
_BELOW_ONE = 1 - 2.0**-53


class SumTree:
    """Weights that can be changed one by one and drawn from in proportion to their values.

    Every node is the sum of its children, computed anew from them when one changes: no rounding
    accumulates, however many changes are made. Weights are float32, sums float64. Nothing waits for
    the device.

    Args:
        size: Number of weights; all are 0 at first.
        device: Where they are kept.
    """

    def __init__(self, size: int, *, device: torch.device | str = "cpu") -> None:
        check_int("size", size, low=1)
        self._size, dtype = size, torch.float32
        self._levels: list[Tensor] = []
        while True:
            num_nodes = -(-size // _FANOUT)
            self._levels.append(torch.zeros(num_nodes * _FANOUT, dtype=dtype, device=device))
            if num_nodes == 1:
                break
            size, dtype = num_nodes, torch.float64

    @property
    def weights(self) -> Tensor:
        """The weights, ``[size]``; not to be written."""
        return self._levels[0][: self._size]

    @property
    def total(self) -> Tensor:
        """The sum of all weights, a float64 scalar."""
        return self._levels[-1].sum(dtype=torch.float64)

    @property
    def num_bytes(self) -> int:
        """Memory of weights and sums."""
        return sum(level.nbytes for level in self._levels)

    def set(self, indices: Tensor, weights: Tensor) -> None:
        """Replace the weights at ``indices``; an index that is there twice needs one weight.

        Args:
            indices: ``[num]``, int64.
            weights: ``[num]``, finite and not negative.
        """
        self._levels[0][indices] = weights.to(torch.float32)
        for below, above in zip(self._levels, self._levels[1:], strict=False):
            indices = indices // _FANOUT
            children = below.view(-1, _FANOUT).index_select(0, indices)
            above[indices] = children.sum(-1, dtype=torch.float64)  # twins write the same sum

    def fill(self, weights: Tensor) -> None:
        """Replace all weights, ``[size]``."""
        self._levels[0][: self._size] = weights
        for below, above in zip(self._levels, self._levels[1:], strict=False):
            sums = below.view(-1, _FANOUT).sum(-1, dtype=torch.float64)
            above[: len(sums)] = sums

    def find(self, fractions: Tensor) -> Tensor:
        """Return the index at which the running sum of weights exceeds each fraction of the total.

        An index whose weight is 0 is never returned, unless all are.

        Args:
            fractions: ``[B]``, float64 in [0, 1]; uniform ones give draws in proportion.
        """
        nodes = torch.zeros(len(fractions), dtype=torch.int64, device=fractions.device)
        rest_B = fractions * self.total
        for level in reversed(self._levels):
            children_BF = level.view(-1, _FANOUT).index_select(0, nodes).double()
            sums_BF = children_BF.cumsum(-1)
            # The sum of a node may differ from its last running sum by rounding; and the first
            # running sum above ``rest`` belongs to a child with weight, if there is one above.
            rest_B = torch.minimum(rest_B, sums_BF[:, -1] * _BELOW_ONE)
            child_B1 = (sums_BF <= rest_B[:, None]).sum(-1, keepdim=True).clamp_(max=_FANOUT - 1)
            before_B1 = sums_BF.gather(1, child_B1) - children_BF.gather(1, child_B1)
            rest_B = (rest_B - before_B1[:, 0]).clamp_(min=0.0)
            nodes = nodes * _FANOUT + child_B1[:, 0]
        return nodes


def last_of_each(indices: Tensor) -> Tensor:
    """Return for every position the last position that holds the same index, without waiting.

    Args:
        indices: ``[num]``, int64.
    """
    ordered, order = indices.sort(stable=True)
    return order[torch.searchsorted(ordered, indices, right=True) - 1]
