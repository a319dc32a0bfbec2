"""The cost model of speculative decoding: expected tokens, speed-up, best number of draft tokens.

Source: Leviathan et al., arXiv 2211.17192, theorem 3.8 and section 3; block efficiency and
memory-bound speed-up (MBSU) as reported by DistillSpec, arXiv 2310.08461.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from selftrain._core.checks import check_int, check_range


def expected_tokens(acceptance: float, num_draft_tokens: int) -> float:
    r"""Return the mean number of tokens per target call if acceptances are independent.

    .. math:: \tau = \frac{1 - \alpha^{K+1}}{1 - \alpha}

    Args:
        acceptance: The probability that a drafted token is accepted, in [0, 1].
        num_draft_tokens: Tokens drafted per block, at least 0.
    """
    check_range("acceptance", acceptance, low=0.0, high=1.0)
    check_int("num_draft_tokens", num_draft_tokens, low=0)
    return float(sum(acceptance**i for i in range(num_draft_tokens + 1)))


def speedup(acceptance: float, num_draft_tokens: int, cost_ratio: float) -> float:
    """Return the expected wall-clock gain over plain decoding.

    Args:
        acceptance: As in :func:`expected_tokens`.
        num_draft_tokens: As in :func:`expected_tokens`.
        cost_ratio: Time of one draft step over the time of one target forward.
    """
    check_range("cost_ratio", cost_ratio, low=0.0)
    return expected_tokens(acceptance, num_draft_tokens) / (num_draft_tokens * cost_ratio + 1)


def operations_factor(acceptance: float, num_draft_tokens: int, operations_ratio: float) -> float:
    r"""Return how many times the arithmetic of plain decoding is done for each token.

    .. math:: (1 - \alpha) \frac{K \hat c + K + 1}{1 - \alpha^{K+1}}

    Args:
        acceptance: As in :func:`expected_tokens`.
        num_draft_tokens: As in :func:`expected_tokens`.
        operations_ratio: Operations of one draft step over those of the target for one token.
    """
    check_range("operations_ratio", operations_ratio, low=0.0)
    done = num_draft_tokens * operations_ratio + num_draft_tokens + 1
    return done / expected_tokens(acceptance, num_draft_tokens)


def optimal_num_draft_tokens(acceptance: float, cost_ratio: float, *, max_tokens: int = 64) -> int:
    """Return the number of draft tokens with the largest :func:`speedup`; 0 means do not speculate.

    Among equals the smallest number is taken.
    """
    gains = [speedup(acceptance, k, cost_ratio) for k in range(max_tokens + 1)]
    return max(range(len(gains)), key=lambda k: (round(gains[k], 12), -k))


def mbsu(block_efficiency: float, num_draft_tokens: int, parameter_ratio: float) -> float:
    """Return the memory-bound speed-up: the gain if time were proportional to parameters read.

    Args:
        block_efficiency: Mean tokens per target call, in [1, num_draft_tokens + 1].
        num_draft_tokens: Tokens drafted per block.
        parameter_ratio: Parameters of the draft over those of the target.
    """
    check_range("block_efficiency", block_efficiency, low=1.0, high=num_draft_tokens + 1.0)
    check_range("parameter_ratio", parameter_ratio, low=0.0)
    return block_efficiency / (num_draft_tokens * parameter_ratio + 1)


def predict_block_efficiency(acceptances: Sequence[Tensor], num_draft_tokens: int) -> float:
    """Predict block efficiency from texts of the target, without decoding.

    Along a text acceptances are not independent, so :func:`expected_tokens` is off. Given that the
    token emitted at ``t`` is ``y_t``, it came from the draft with probability
    ``min(1, q(y_t) / p(y_t))``; a block begins behind the end of the one before, so the probability
    that one begins at ``t`` follows by recursion. Exact for token verification.

    Args:
        acceptances: For each text drawn from the target, ``min(1, q(y_t) / p(y_t))`` at every
            position ``[time]``; texts shorter than ``num_draft_tokens`` do not count.
        num_draft_tokens: Tokens drafted per block.

    Raises:
        ValueError: If every text is shorter than ``num_draft_tokens``.
    """
    check_int("num_draft_tokens", num_draft_tokens, low=0)
    tokens = calls = 0.0
    for accept in acceptances:
        if len(accept) >= max(num_draft_tokens, 1):
            starts, emitted = _renewals(accept.double().cpu(), num_draft_tokens)
            tokens, calls = tokens + float(starts @ emitted), calls + float(starts.sum())
    if calls == 0:
        raise ValueError(f"no text has num_draft_tokens={num_draft_tokens} tokens or more.")
    return tokens / calls


def _renewals(accept: Tensor, num_draft_tokens: int) -> tuple[Tensor, Tensor]:
    """Return, for every position, the chance that a block begins there and its mean tokens."""
    if num_draft_tokens == 0:
        return torch.ones_like(accept), torch.ones_like(accept)
    windows = accept.unfold(0, num_draft_tokens, 1)  # [starts, drafted]
    reach = windows.cumprod(1)
    # Column i: exactly i drafted tokens stand.
    before = torch.nn.functional.pad(reach, (1, 0), value=1.0)
    ends = before - torch.nn.functional.pad(reach, (0, 1))
    starts = torch.zeros(len(windows) + num_draft_tokens + 1, dtype=accept.dtype)
    starts[0] = 1.0
    for t in range(len(windows)):
        starts[t + 1 : t + num_draft_tokens + 2] += starts[t] * ends[t]
    return starts[: len(windows)], before.sum(1)
