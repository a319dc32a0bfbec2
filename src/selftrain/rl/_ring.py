"""The memory behind the replay buffer: steps of several environments in a ring, frames once.

A *row* is one step of all environments; rows are numbered from the first ever added, and row ``r``
lies at place ``r % num_rows`` of the ring. A *slot* is the place of one environment's step. One
more slot holds zeros: indices of frames that do not belong to an episode point there.

Shape letters: B batch, E environments, H steps ahead, K window, R rows, S stacked frames.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

TERMINATED, TRUNCATED, BORDER = 1, 2, 4
_END = TERMINATED | TRUNCATED


@dataclass(frozen=True, slots=True)
class Ahead:
    """What lies before a batch of slots, from the step itself to H steps later."""

    slots: Tensor
    """``[B, H + 1]``."""
    terminated: Tensor
    """``[B, H + 1]``, bool."""
    truncated: Tensor
    """``[B, H + 1]``, bool."""
    border: Tensor
    """``[B, H + 1]``, bool: whether the observation is the last of an episode."""


class Ring:
    """Frames, actions, rewards and ends of the last ``num_rows`` steps of E environments."""

    def __init__(
        self,
        observation_shape: tuple[int, ...],
        *,
        num_rows: int,
        num_envs: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        self.num_rows, self.num_envs, self.device = num_rows, num_envs, device
        self.num_slots = num_rows * num_envs
        # Not zeros: a system gives the memory when it is first written, so that a long buffer
        # costs what it holds.
        shape = (self.num_slots + 1, *observation_shape)
        self.frames = torch.empty(shape, dtype=dtype, device=device)
        self.frames[-1] = 0
        self.actions = torch.zeros(self.num_slots, dtype=torch.int32, device=device)
        self.rewards = torch.zeros(self.num_slots, dtype=torch.float32, device=device)
        self.flags = torch.zeros(self.num_slots, dtype=torch.uint8, device=device)
        self.ages = torch.zeros(self.num_slots, dtype=torch.int32, device=device)
        self.end = 0
        """The number of rows ever added, which is the number of the next."""
        self.last_flags = np.zeros(num_envs, dtype=np.uint8)
        self.last_ages = np.full(num_envs, -1, dtype=np.int32)

    @property
    def start(self) -> int:
        """The number of the oldest row that is still there."""
        return max(0, self.end - self.num_rows)

    @property
    def num_bytes(self) -> int:
        """Memory of all, once it is full."""
        fields = (self.frames, self.actions, self.rewards, self.flags, self.ages)
        return sum(tensor.nbytes for tensor in fields)

    def tensors(self) -> dict[str, Tensor]:
        """Return everything stored, by name, the filled part only."""
        filled = (self.end - self.start) * self.num_envs
        names = ("frames", "actions", "rewards", "flags", "ages")
        return {name: getattr(self, name)[:filled] for name in names}

    def append(
        self,
        observations: Tensor,
        actions: np.ndarray,
        rewards: np.ndarray,
        flags: np.ndarray,
        ages: np.ndarray,
    ) -> None:
        """Write rows, each argument ``[R, E, ...]``."""
        data = {
            "frames": observations,
            "actions": torch.from_numpy(actions.astype(np.int32)),
            "rewards": torch.from_numpy(rewards.astype(np.float32)),
            "flags": torch.from_numpy(flags),
            "ages": torch.from_numpy(ages),
        }
        num, done = len(flags), 0
        while done < num:
            place = self.end % self.num_rows
            part = min(num - done, self.num_rows - place)
            slots = slice(place * self.num_envs, (place + part) * self.num_envs)
            for name, rows in data.items():
                getattr(self, name)[slots] = rows[done : done + part].flatten(0, 1)
            done, self.end = done + part, self.end + part
        self.last_flags, self.last_ages = flags[-1], ages[-1]

    def truncate(self, envs: np.ndarray) -> None:
        """Mark the newest steps as truncated, of the environments where ``envs`` holds."""
        self.last_flags = self.last_flags | np.where(envs, TRUNCATED, 0).astype(np.uint8)
        place = (self.end - 1) % self.num_rows
        slots = slice(place * self.num_envs, (place + 1) * self.num_envs)
        self.flags[slots] = torch.from_numpy(self.last_flags)

    def restore_last(self) -> None:
        """Read what :meth:`append` remembers of the newest row back from the tensors."""
        if self.end:
            place = (self.end - 1) % self.num_rows
            slots = slice(place * self.num_envs, (place + 1) * self.num_envs)
            self.last_flags = self.flags[slots].cpu().numpy().copy()
            self.last_ages = self.ages[slots].cpu().numpy().copy()

    def slots_of(self, rows: Tensor) -> Tensor:
        """Return the slots of whole rows, ``[R * E]``."""
        envs = torch.arange(self.num_envs, device=self.device)
        return ((rows % self.num_rows)[:, None] * self.num_envs + envs).flatten()

    def complete(self, first: int, num_steps: int, window: int) -> Tensor:
        """Return which steps of the rows from ``first`` on can be learned from, ``[R, E]``.

        That is, whose next ``num_steps`` steps are known, or end in a terminal state or in a state
        that is stored; whose next ``window`` steps are known or end; and that are no borders.
        """
        rows = torch.arange(first, self.end, device=self.device)
        num = len(rows)
        flags_RE = self.flags.take(self.slots_of(rows)).view(num, self.num_envs)
        ends_RE, border_RE = (flags_RE & _END) != 0, (flags_RE & BORDER) != 0
        kept_RE = torch.zeros_like(border_RE)
        kept_RE[:-1] = border_RE[1:]
        good_RE = ((flags_RE & TERMINATED) != 0) | (ends_RE & kept_RE)
        row_R1 = torch.arange(num, device=self.device)[:, None]
        none = num + max(num_steps, window)
        end_RE = torch.where(ends_RE, row_R1, none).flip(0).cummin(0).values.flip(0)
        ahead_RE, known_R1 = end_RE - row_R1, num - 1 - row_R1
        ends_well_RE = good_RE.gather(0, end_RE.clamp(max=num - 1))
        ready_RE = torch.where(ahead_RE < num_steps, ends_well_RE, known_R1 >= num_steps)
        return ready_RE & ((ahead_RE < window) | (known_R1 >= window)) & ~border_RE

    def indices_of(self, slots: Tensor) -> Tensor:
        """Return the number of the step that lies in each slot, counted from the first ever."""
        newest = self.end * self.num_envs - 1
        return newest - (newest - slots) % self.num_slots

    def look_ahead(self, indices: Tensor, horizon: int) -> Ahead:
        """Return what follows the steps ``indices``, ``[B]``; what is not known yet is no end."""
        later_H = torch.arange(horizon + 1, device=self.device) * self.num_envs
        later_BH = indices[:, None] + later_H
        slots_BH = later_BH % self.num_slots
        flags_BH = self.flags.take(slots_BH) * (later_BH < self.end * self.num_envs)
        return Ahead(
            slots=slots_BH,
            terminated=(flags_BH & TERMINATED) != 0,
            truncated=(flags_BH & TRUNCATED) != 0,
            border=(flags_BH & BORDER) != 0,
        )

    def read_frames(self, slots: Tensor) -> Tensor:
        """Return the frames of ``slots``, ``[B, num]``, as ``[B, num, *shape]``."""
        # Indexing with brackets copies byte by byte on CPUs, this whole frames: 100 times faster.
        frames = self.frames.index_select(0, slots.flatten())
        return frames.view(*slots.shape, *self.frames.shape[1:])

    def stack(self, slots: Tensor, ages: Tensor, num: int) -> Tensor:
        """Return the slots of the last ``num`` frames of each state, ``[B, S]``.

        Args:
            slots: ``[B]``, of the states' own frames.
            ages: ``[B]``, how many frames of the episode lie before; negative for no state at all.
            num: S.
        """
        back_S = torch.arange(num - 1, -1, -1, device=self.device)
        slots_BS = (slots[:, None] - back_S * self.num_envs) % self.num_slots
        return torch.where(back_S <= ages[:, None], slots_BS, self.num_slots)
