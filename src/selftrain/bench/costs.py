"""What the models' forwards cost by themselves, and the ceiling that this puts on decoding."""

import statistics
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from selftrain._core.checks import check_int
from selftrain.bench.timing import milliseconds


@dataclass(frozen=True, kw_only=True, slots=True)
class ForwardCosts:
    """Milliseconds of bare model forwards, and what the cost model makes of them.

    Source: Leviathan et al., arXiv 2211.17192, section 3.1, with the time of a block in place of
    the time of one token.
    """

    draft_step: float
    """T_d: draft forward over one token a row."""
    target_one: float
    """T_1: target forward over one token a row."""
    target_block: float
    """T_{g+1}: target forward over the pending token and the draft."""
    num_draft_tokens: int
    """g."""
    batch_size: int = 1
    """Rows."""

    @property
    def block(self) -> float:
        """The time of a block of which nothing is left but the forwards."""
        return self.num_draft_tokens * self.draft_step + self.target_block

    def ceiling(self, block_efficiency: float) -> float:
        """Return the tokens per second of a decoder that costs nothing beside the forwards."""
        return 1000 * self.batch_size * block_efficiency / self.block

    def speedup(self, block_efficiency: float, *, verify: float = 0.0) -> float:
        """Return the predicted gain over plain decoding.

        Args:
            block_efficiency: Mean tokens per target call.
            verify: T_verify in milliseconds, added to the block.
        """
        return block_efficiency * self.target_one / (self.block + verify)


class BareForwards:
    """Times the forwards of a pair as ``transformers`` does them, with its own growing cache.

    No mask and no positions are passed, nothing is sampled, and the tokens fed are removed from the
    cache after each forward, outside of the timing.

    Args:
        target: The target model, in evaluation mode.
        draft: The draft model, in evaluation mode.
        context: Tokens in the caches: attention's cost grows with them.
        num_draft_tokens: Tokens drafted per block.
        batch_size: Rows.
    """

    def __init__(
        self,
        target: PreTrainedModel,
        draft: PreTrainedModel,
        *,
        context: int,
        num_draft_tokens: int,
        batch_size: int = 1,
    ) -> None:
        check_int("context", context, low=1)
        self.num_draft_tokens, self.batch_size = num_draft_tokens, batch_size
        self.models = {"target": target, "draft": draft}
        self.parts = {
            "draft_step": ("draft", 1),
            "target_one": ("target", 1),
            "target_block": ("target", num_draft_tokens + 1),
        }
        self.times: dict[str, list[float]] = {name: [] for name in self.parts}
        ids = torch.zeros(batch_size, context, dtype=torch.long, device=target.device)
        self.caches = {}
        for role, model in self.models.items():
            self.caches[role] = DynamicCache(config=model.config)
            self._forward(role, ids)
        self._new = ids.new_zeros(batch_size, num_draft_tokens + 1)

    def measure(self, repeats: int = 10) -> ForwardCosts:
        """Time every part ``repeats`` times in turn; return the medians of these and keep all."""
        fresh: dict[str, list[float]] = {name: [] for name in self.parts}
        device = self.models["target"].device
        for _ in range(repeats):
            for name, (role, num) in self.parts.items():
                tokens = self._new[:, :num]
                fresh[name].append(
                    milliseconds(lambda r=role, t=tokens: self._forward(r, t), device)
                )
                # Since transformers 5 a negative number is how many tokens to remove.
                self.caches[role].crop(-num)
        for name, values in fresh.items():
            self.times[name] += values
        return self._costs(fresh)

    def forget(self) -> None:
        """Drop what was measured so far."""
        for values in self.times.values():
            values.clear()

    def all(self) -> ForwardCosts:
        """Return the medians over all that was measured."""
        return self._costs(self.times)

    def _costs(self, times: dict[str, list[float]]) -> ForwardCosts:
        medians = {name: statistics.median(values) for name, values in times.items()}
        return ForwardCosts(
            num_draft_tokens=self.num_draft_tokens, batch_size=self.batch_size, **medians
        )

    def _forward(self, role: str, tokens: Tensor) -> None:
        with torch.inference_mode():
            self.models[role](input_ids=tokens, past_key_values=self.caches[role], use_cache=True)
