"""What the parts of a block cost on these models and this machine, and what to expect of them."""

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel

from selftrain._core.checks import check_int, check_not_empty
from selftrain.decoding.cache import SlotCache
from selftrain.decoding.cost_model import expected_tokens
from selftrain.decoding.law import draw, warp
from selftrain.decoding.params import SamplingParams
from selftrain.decoding.speculative import SpeculativeDecoder
from selftrain.nn.modes import training_mode
from selftrain.ops.verify import verify_block, verify_greedy


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
            else verify_block(
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


@dataclass(frozen=True, slots=True)
class Plan:
    """What speculative decoding is expected to bring, and with how many draft tokens."""

    costs: Costs
    """The measured times."""
    acceptance: float
    """The measured probability that a drafted token is accepted."""
    num_draft_tokens: int
    """The best number; 0 means do not speculate."""
    speedup: float
    """Over plain decoding, with that number; 1 where it is 0."""


def plan(
    target: PreTrainedModel,
    draft: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    *,
    params: SamplingParams,
    max_draft_tokens: int = 16,
) -> Plan:
    """Measure times and acceptance on some prompts, and say what to expect.

    The time of a block is taken as linear in the number of draft tokens, between that of one token
    and that of a block of ``max_draft_tokens``. :class:`SpeculativeDecoder` with
    ``num_draft_tokens="auto"`` does the like while it decodes.

    Args:
        target: The target model.
        draft: The draft model.
        prompts: Prompts like those to come, as token ids; a few will do.
        params: How tokens will be drawn, and how many.
        max_draft_tokens: The largest number to consider, at least 1.

    Raises:
        ValueError: If there are no prompts.
    """
    check_not_empty("prompts", prompts)
    check_int("max_draft_tokens", max_draft_tokens, low=1)
    decoder = SpeculativeDecoder(target, draft, num_draft_tokens=1, verifier="token")
    outputs = [
        decoder.generate(torch.tensor([list(p)], device=target.device), params=params)
        for p in prompts
    ]
    stats = outputs[0].stats
    for output in outputs[1:]:
        stats = stats + output.stats
    costs = measure_costs(
        target,
        draft,
        context=max(map(len, prompts)) + params.max_new_tokens // 2,
        num_draft_tokens=max_draft_tokens,
        params=params,
    )
    plain = costs.target_one + costs.verify
    per_token = costs.draft_step + (costs.target_block - costs.target_one) / max_draft_tokens
    acceptance = min(1.0, stats.analytic_acceptance)
    gains = [
        expected_tokens(acceptance, k) * plain / (plain + k * max(0.0, per_token))
        for k in range(max_draft_tokens + 1)
    ]
    best = max(range(len(gains)), key=lambda k: (gains[k], -k))
    return Plan(costs, acceptance, best, gains[best])
