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


def predict_block_efficiency(
    acceptances: Sequence[Tensor], num_draft_tokens: int, *, whole_texts: bool = False
) -> float:
    """Predict block efficiency from texts of the target, without decoding.

    Along a text acceptances are not independent, so :func:`expected_tokens` is off. Given that the
    token emitted at ``t`` is ``y_t``, it came from the draft with probability
    ``min(1, q(y_t) / p(y_t))``; a block begins behind the end of the one before, so the probability
    that one begins at ``t`` follows by recursion. Exact for token verification.

    Args:
        acceptances: For each text drawn from the target, ``min(1, q(y_t) / p(y_t))`` at every
            position ``[time]``.
        num_draft_tokens: Tokens drafted per block.
        whole_texts: Whether the last block of a text counts though the text cuts it off. Then the
            result is tokens per target call over the very texts, and they may be short. Otherwise
            it is that of text without an end, and those shorter than ``num_draft_tokens`` do not
            count.

    Raises:
        ValueError: If no text counts.
    """
    check_int("num_draft_tokens", num_draft_tokens, low=0)
    shortest = 1 if whole_texts else max(num_draft_tokens, 1)
    kept = [accept for accept in acceptances if len(accept) >= shortest]
    if not kept:
        raise ValueError(f"no text has num_draft_tokens={num_draft_tokens} tokens or more.")
    lengths_B = torch.tensor([len(accept) for accept in kept])
    # Behind a text's end everything stands: what is there reaches no block that counts.
    accept_BT = torch.ones(len(kept), int(lengths_B.max()) + num_draft_tokens, dtype=torch.float64)
    for row, accept in zip(accept_BT, kept, strict=True):
        row[: len(accept)] = accept
    starts_BT, emitted_BT = _renewals(accept_BT, num_draft_tokens)
    places = torch.arange(starts_BT.shape[1])
    last_B = lengths_B - 1 if whole_texts else lengths_B - max(num_draft_tokens, 1)
    starts_BT = starts_BT * (places <= last_B[:, None])
    tokens = lengths_B.sum() if whole_texts else (starts_BT * emitted_BT).sum()
    return float(tokens / starts_BT.sum())


def _renewals(accept_BT: Tensor, num_draft_tokens: int) -> tuple[Tensor, Tensor]:
    """Return, for every position, the chance that a block begins there and its mean tokens.

    Positions go up to where the last window of ``num_draft_tokens`` tokens begins.
    """
    if num_draft_tokens == 0:
        return torch.ones_like(accept_BT), torch.ones_like(accept_BT)
    reach_BTK = accept_BT.unfold(1, num_draft_tokens, 1).cumprod(-1)
    # Column i: exactly i drafted tokens stand.
    before_BTK = torch.nn.functional.pad(reach_BTK, (1, 0), value=1.0)
    ends_BTK = before_BTK - torch.nn.functional.pad(reach_BTK, (0, 1))
    num, time, width = ends_BTK.shape
    starts_BT = accept_BT.new_zeros(num, time + width)
    starts_BT[:, 0] = 1.0
    for t in range(time):
        starts_BT[:, t + 1 : t + width + 1] += starts_BT[:, t : t + 1] * ends_BTK[:, t]
    return starts_BT[:, :time], before_BTK.sum(-1)
