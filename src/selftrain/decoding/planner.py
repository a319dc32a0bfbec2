"""The cost model of speculative decoding: expected tokens, speed-up, best number of draft tokens.

Source: Leviathan et al., arXiv 2211.17192, theorem 3.8 and section 3; block efficiency and
memory-bound speed-up (MBSU) as reported by DistillSpec, arXiv 2310.08461.
"""

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel

from selftrain._core.checks import check_int, check_range
from selftrain.decoding.cache import SlotCache
from selftrain.decoding.params import SamplingParams
from selftrain.decoding.sampler import draw, warp
from selftrain.nn.modes import training_mode
from selftrain.ops.verify import verify_greedy, verify_tokens


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


def operations_factor(acceptance: float, num_draft_tokens: int, flop_ratio: float) -> float:
    r"""Return the expected factor by which the number of arithmetic operations grows.

    .. math:: \frac{(1 - \alpha)(K \hat c + K + 1)}{1 - \alpha^{K+1}}

    Speed is bought with operations: those spent on tokens that fall. Where a machine is bound by
    them and not by memory, speculative decoding is slower by this factor.
    Source: Leviathan et al., arXiv 2211.17192, theorem 3.11.

    Args:
        acceptance: As in :func:`expected_tokens`.
        num_draft_tokens: As in :func:`expected_tokens`.
        flop_ratio: Operations of the draft for one token over those of the target.
    """
    check_range("flop_ratio", flop_ratio, low=0.0)
    operations = num_draft_tokens * flop_ratio + num_draft_tokens + 1
    return operations / expected_tokens(acceptance, num_draft_tokens)


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


@dataclass(frozen=True, slots=True)
class Costs:
    """Milliseconds of the parts of a block, measured at batch 1."""

    target_one: float
    """Target forward over one token."""
    target_block: float
    """Target forward over a whole block: the pending token and the draft."""
    draft_step: float
    """Draft forward over one token, and sampling from it."""
    verify: float
    """Warping and verification of a block."""
    num_draft_tokens: int
    """Tokens drafted per block."""

    def plain_tokens_per_second(self) -> float:
        """Predict the speed of plain decoding."""
        return 1000 / (self.target_one + self.verify)

    def tokens_per_second(self, block_efficiency: float) -> float:
        """Predict the speed of speculative decoding from its mean tokens per target call."""
        block = self.num_draft_tokens * self.draft_step + self.target_block + self.verify
        return 1000 * block_efficiency / block


@torch.inference_mode()
def measure_costs(
    target: PreTrainedModel,
    draft: PreTrainedModel,
    *,
    context: int,
    num_draft_tokens: int,
    params: SamplingParams,
    repeats: int = 30,
) -> Costs:
    """Time the parts of a block on these models and this machine; medians over ``repeats``.

    Args:
        target: The target model.
        draft: The draft model.
        context: Tokens before the block: attention's cost grows with them.
        num_draft_tokens: Tokens drafted per block, at least 1.
        params: How tokens are drawn.
        repeats: How often each part is timed, the parts in turn.
    """
    check_int("context", context, low=1)
    check_int("num_draft_tokens", num_draft_tokens, low=1)
    new, capacity = num_draft_tokens + 1, context + num_draft_tokens + 1
    caches = {"target": SlotCache(target, capacity=capacity)}
    caches["draft"] = SlotCache(draft, capacity=capacity)
    for cache in caches.values():
        cache.prefill([[0] * context])
    device = target.device
    tokens = torch.zeros(1, new, dtype=torch.long, device=device)
    positions = (context + torch.arange(new, device=device)).unsqueeze(0)
    noise = torch.full((1, new), 0.5, dtype=torch.float64, device=device)
    block = caches["target"].forward(tokens, positions, extent=capacity)
    drafted = block[:, :-1].float()

    def forward(role: str, count: int) -> Tensor:
        return caches[role].forward(tokens[:, :count], positions[:, :count], extent=context + count)

    parts = {
        "target_one": lambda: forward("target", 1),
        "target_block": lambda: forward("target", new),
        "draft_step": lambda: draw(forward("draft", 1)[:, -1], noise[:, 0], params),
        "verify": lambda: (
            verify_greedy(block, tokens[:, 1:])
            if params.greedy
            else verify_tokens(
                warp(block, params),
                drafted,
                tokens[:, 1:],
                accept_uniforms=noise[:, 1:],
                emit_uniforms=noise,
            )
        ),
    }
    times: dict[str, list[float]] = {name: [] for name in parts}
    with training_mode(False, target, draft):
        for _ in range(repeats):
            for name, part in parts.items():
                times[name].append(_milliseconds(part, device))
    medians = {name: statistics.median(values) for name, values in times.items()}
    return Costs(num_draft_tokens=num_draft_tokens, **medians)


def _milliseconds(part: Callable[[], object], device: torch.device) -> float:
    synchronize = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    synchronize()
    start = time.perf_counter()
    part()
    synchronize()
    return (time.perf_counter() - start) * 1000
