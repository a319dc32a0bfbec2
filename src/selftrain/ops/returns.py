"""Returns over a few steps of experience, with the end of an episode apart from its interruption.

Shape letters: N steps.
"""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from selftrain._core.checks import check_range


class NStepReturns(NamedTuple):
    """What a value is regressed on: ``returns + discounts * value(state num_steps later)``."""

    returns: Float[Tensor, "*batch"]
    """Discounted sum of the rewards up to the first end of an episode, float32."""
    discounts: Float[Tensor, "*batch"]
    """Factor of the value that follows: 0 where the episode terminated."""
    num_steps: Int[Tensor, "*batch"]
    """How many rewards were summed, from 1 to N."""


def n_step_returns(
    rewards: Float[Tensor, "*batch steps"],
    terminated: Bool[Tensor, "*batch steps"],
    truncated: Bool[Tensor, "*batch steps"],
    *,
    discount: float,
) -> NStepReturns:
    r"""Return the discounted sum of the rewards of N steps and the discount of what follows them.

    .. math:: R = \sum_{j<m} \gamma^j r_j, \qquad
              d = \begin{cases} 0 & \text{terminated at step } m - 1 \\ \gamma^m & \text{else}
              \end{cases}

    with m the number of steps up to and with the first end, or N without one. A truncated episode
    goes on in principle: its return is cut short and completed by the value of its last state. A
    step that both terminates and truncates terminates.

    Args:
        rewards: Of consecutive steps; what lies behind the first end is ignored.
        terminated: Whether the episode ended with the step, by the rules of the environment.
        truncated: Whether it was broken off after the step.
        discount: The factor :math:`\gamma`, in [0, 1].

    Raises:
        ValueError: If ``discount`` is out of range, there are no steps or the shapes differ.

    Example:
        >>> ends = torch.tensor([False, True, False])
        >>> n_step_returns(torch.ones(3), ends, torch.zeros(3, dtype=torch.bool), discount=0.5)
        NStepReturns(returns=tensor(1.5000), discounts=tensor(0.), num_steps=tensor(2))
    """
    check_range("discount", discount, low=0.0, high=1.0)
    if not rewards.shape == terminated.shape == truncated.shape or 0 in rewards.shape[-1:]:
        raise ValueError(
            "rewards, terminated and truncated need one shape with at least one step, got "
            f"{tuple(rewards.shape)}, {tuple(terminated.shape)} and {tuple(truncated.shape)}."
        )
    num = rewards.shape[-1]
    ends = (terminated | truncated).int()
    counted = ends.cumsum(-1) == ends  # no end before this step
    num_steps = counted.sum(-1)
    powers = discount ** torch.arange(num + 1, device=rewards.device, dtype=torch.float32)
    # Not a product with 0: rewards behind the end may be anything.
    returns = torch.where(counted, rewards * powers[:-1], 0.0).sum(-1)
    over = (counted & terminated).any(-1)
    return NStepReturns(returns, powers[num_steps].masked_fill(over, 0.0), num_steps)
