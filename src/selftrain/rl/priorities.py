"""Which steps of a ring can be drawn, how likely each is, and drawing them.

Shape letters: B batch, E environments, R rows.
"""

import torch
from torch import Tensor

from selftrain.rl._ring import Ring
from selftrain.rl.sum_tree import SumTree, last_of_each


class Priorities:
    """Powers of priorities over the slots of a ring, and the tree of those that can be drawn.

    A step can be drawn when what its return and window need is known and its stack is whole. That
    changes near the newest and the oldest row only, so that these alone are looked at again, when
    the next batch is drawn.

    Args:
        ring: The steps.
        stack: Number of frames that make an observation.
        exponent: Of the priorities; None if all steps are equally likely.
    """

    def __init__(self, ring: Ring, *, stack: int, exponent: float | None) -> None:
        self._ring, self._stack, self._exponent = ring, stack, exponent
        # The last slot is never drawn; what should not be written anywhere is written there.
        size = ring.num_slots + 1
        self._tree = SumTree(size, device=ring.device)
        self._ready = torch.zeros(size, dtype=torch.bool, device=ring.device)
        self._powers: Tensor | None = None
        if exponent is not None:
            self._powers = torch.zeros(size, dtype=torch.float32, device=ring.device)
        self._largest = torch.ones((), device=ring.device)
        # What the tree was made for: num_steps, window, and how many rows had been added.
        self._settled: tuple[int, int, int] | None = None

    @property
    def num_bytes(self) -> int:
        """Memory of all."""
        powers = 0 if self._powers is None else self._powers.nbytes
        return self._tree.num_bytes + self._ready.nbytes + powers

    def tensors(self) -> dict[str, Tensor]:
        """Return what cannot be computed from the ring, the filled part only."""
        if self._powers is None:
            return {}
        filled = (self._ring.end - self._ring.start) * self._ring.num_envs
        return {"powers": self._powers[:filled], "largest": self._largest}

    def forget(self) -> None:
        """Make the tree anew before the next draw, because the ring was written behind its back."""
        self._settled = None
        self._ready.zero_()

    def added(self, first: int) -> None:
        """Give the rows from ``first`` on the largest priority so far."""
        if self._powers is not None:
            rows = torch.arange(first, self._ring.end, device=self._ring.device)
            self._powers[self._ring.slots_of(rows)] = self._largest

    def settle(self, num_steps: int, window: int) -> None:
        """Bring the tree up to date for drawing steps with these following ones.

        Raises:
            ValueError: If the ring is too short, or no step can be drawn (a GPU is asked only when
                the tree was made anew).
        """
        ring, horizon = self._ring, max(num_steps, window)
        if horizon + self._stack > ring.num_rows:
            raise ValueError(
                f"num_steps={num_steps} and window={window} with stacks of {self._stack} look at "
                f"{horizon + self._stack} steps of an environment, the buffer keeps "
                f"{ring.num_rows}. Make it with a larger capacity."
            )
        wanted = (num_steps, window, ring.end)
        anew = self._settled is None or self._settled[:2] != wanted[:2]
        if wanted != self._settled:
            first = ring.start
            if self._settled is not None and not anew:
                first = max(first, self._settled[2] - horizon)
            self._refresh(first, num_steps, window, anew=anew)
            self._settled = wanted
        if (anew or ring.device.type == "cpu") and not bool(self._tree.total > 0):
            self._settled = None
            raise ValueError(
                f"no step of the {(ring.end - ring.start) * ring.num_envs} stored can be drawn: "
                "what follows them is not known yet, or all priorities are 0. Add more steps first."
            )

    def draw(
        self, batch_size: int, importance_exponent: float, rng: torch.Generator | None
    ) -> tuple[Tensor, Tensor]:
        """Return the numbers of B drawn steps, and their importance weights.

        One is drawn from each of B equal parts of the total (arXiv 1511.05952, appendix B.2.1).
        """
        device = self._ring.device
        noise = torch.rand(
            batch_size,
            generator=rng,
            device=device if rng is None else rng.device,
            dtype=torch.float64,
        )
        parts = torch.arange(batch_size, device=device)
        slots = self._tree.find((parts + noise.to(device, non_blocking=True)) / batch_size)
        if self._powers is None:
            weights = torch.ones(batch_size, device=device)
        else:
            powers = self._powers.take(slots)
            weights = (powers.min() / powers) ** importance_exponent
        return self._ring.indices_of(slots), weights

    def update(self, indices: Tensor, priorities: Tensor) -> None:
        """Set the priorities of steps; those that are no longer there are passed over.

        Raises:
            ValueError: If a priority is negative or not finite (seen on CPUs only).
        """
        if self._powers is None or self._exponent is None:
            raise AssertionError("without an exponent there are no priorities")
        ring, raw = self._ring, priorities.to(torch.float32)
        powers = torch.where(raw > 0, raw**self._exponent, 0.0)
        if ring.device.type == "cpu" and not bool(((raw >= 0) & powers.isfinite()).all()):
            raise ValueError(f"priorities must be finite and not negative, got {raw.tolist()}.")
        oldest, newest = ring.start * ring.num_envs, ring.end * ring.num_envs - 1
        there = (indices >= oldest) & (indices <= newest)
        slots = torch.where(there, indices % ring.num_slots, ring.num_slots)
        powers = powers[last_of_each(slots)] * there
        self._powers[slots] = powers
        self._tree.set(slots, powers * self._ready[slots])
        self._largest = torch.maximum(self._largest, powers.max())

    def _refresh(self, first: int, num_steps: int, window: int, *, anew: bool) -> None:
        """Look again at the rows from ``first`` on, and at the oldest."""
        ring = self._ring
        ready_RE = ring.complete(first, num_steps, window)
        rows = torch.arange(first, ring.end, device=ring.device)
        if ring.end > ring.num_rows:
            # The frames before the oldest rows are overwritten: their stacks are not whole.
            whole = ring.start + self._stack - 1
            ready_RE[: max(0, whole - first)] = False
            older = torch.arange(ring.start, min(whole, first), device=ring.device)
            rows = torch.cat([older, rows])
            ready_RE = torch.cat([ready_RE.new_zeros(len(older), ring.num_envs), ready_RE])
        slots, ready = ring.slots_of(rows), ready_RE.flatten()
        self._ready[slots] = ready
        if anew:
            powers = 1.0 if self._powers is None else self._powers
            self._tree.fill(self._ready * powers)
        else:
            self._tree.set(slots, ready if self._powers is None else ready * self._powers[slots])
