"""Batches of transitions, put together from the steps of a ring.

Shape letters: B batch, K window, S stacked frames.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from selftrain.ops.returns import n_step_returns
from selftrain.rl._ring import Ahead, Ring


@dataclass(frozen=True, slots=True)
class Window:
    """The K steps that follow a step, for losses on sequences."""

    observations: Tensor
    """``[B, K + 1, ...]``, from the step's own observation on; zeros after the episode's end.
    States share the memory of their frames: copy before writing."""
    actions: Tensor
    """``[B, K]``, int64."""
    mask: Tensor
    """``[B, K]``, bool: whether the observation k + 1 steps later is of the same episode and no
    terminal lies before it."""


@dataclass(frozen=True, slots=True)
class Batch:
    """Steps drawn from a :class:`ReplayBuffer`, on its device."""

    observations: Tensor
    """``[B, *shape]``, with stacking ``[B, S, *shape]``: what the action was chosen by."""
    actions: Tensor
    """``[B]``, int64."""
    returns: Tensor
    """``[B]``, float32: discounted sum of the rewards of the next steps."""
    discounts: Tensor
    """``[B]``, float32: factor of the value of ``next_observations``; 0 after a terminal."""
    next_observations: Tensor
    """Shaped as ``observations``; zeros where a terminal's observation was not stored."""
    next_actions: Tensor
    """``[B]``, int64: the action stored with the next observation, for SARSA. -1 where none was
    logged (the last observation of an :class:`Episode`), 0 where ``discounts`` is 0."""
    weights: Tensor
    """``[B]``, float32: importance weights, the largest 1."""
    indices: Tensor
    """``[B]``, int64: for :meth:`ReplayBuffer.update_priorities`."""
    window: Window | None = None
    """The steps that follow, where asked for."""


def gather_batch(
    ring: Ring,
    indices: Tensor,
    weights: Tensor,
    *,
    stack: int,
    num_steps: int,
    discount: float,
    window: int,
) -> Batch:
    """Return the transitions and windows that begin with the steps ``indices``, ``[B]``."""
    ahead = ring.look_ahead(indices, max(num_steps, window))
    slots = ahead.slots[:, 0]
    terminated, truncated = ahead.terminated[:, :num_steps], ahead.truncated[:, :num_steps]
    rewards = ring.rewards.take(ahead.slots[:, :num_steps])
    returned = n_step_returns(rewards, terminated, truncated, discount=discount)
    last = returned.num_steps[:, None]
    ended = (terminated | truncated).gather(1, last - 1)
    there = (~ended | ahead.border.gather(1, last))[:, 0]
    next_slots = ahead.slots.gather(1, last)[:, 0]
    ages = ring.ages.take(slots)
    inside, mask = _window_masks(ahead, window)
    places = [
        ring.stack(slots, ages, stack),
        torch.where(inside, ahead.slots[:, 1 : window + 1], ring.num_slots),
        ring.stack(next_slots, torch.where(there, ages + returned.num_steps, -1), stack),
    ]
    frames = ring.read_frames(torch.cat(places, dim=1))
    following = None
    if window:
        following = Window(
            observations=_states(frames[:, : stack + window], stack),
            actions=ring.actions.take(ahead.slots[:, :window]).long(),
            mask=mask,
        )
    return Batch(
        observations=_states(frames[:, :stack], stack)[:, 0],
        actions=ring.actions.take(slots).long(),
        returns=returned.returns,
        discounts=returned.discounts,
        next_observations=_states(frames[:, -stack:], stack)[:, 0],
        next_actions=ring.actions.take(next_slots).long().masked_fill(returned.discounts == 0, 0),
        weights=weights,
        indices=indices,
        window=following,
    )


def _states(frames: Tensor, stack: int) -> Tensor:
    """Return ``[B, num, S, *shape]`` states as views of ``[B, num + S - 1, *shape]`` frames."""
    return frames if stack == 1 else frames.unfold(1, stack, 1).movedim(-1, 2)


def _window_masks(ahead: Ahead, num: int) -> tuple[Tensor, Tensor]:
    """Return which of the next K observations are of the episode, and the mask of a window."""
    ends = (ahead.terminated | ahead.truncated)[:, :num].int()
    before = ends.cumsum(1) == ends  # no end before the step
    alive = before & (ends == 0)
    last = before & ahead.border[:, 1 : num + 1] & (ends == 1)
    return alive | last, alive | (last & ~ahead.terminated[:, :num])
