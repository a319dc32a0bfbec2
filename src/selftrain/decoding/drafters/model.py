"""A smaller model as drafter."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from selftrain.decoding.cache import SlotCache
from selftrain.decoding.drafters.protocol import Draft
from selftrain.decoding.params import SamplingParams
from selftrain.decoding.sampler import warp
from selftrain.ops.warp import inverse_cdf


class ModelDraft:
    """A draft model at work on a batch of sequences.

    Args:
        model: A model for which :func:`selftrain.decoding.cache.slot_obstacle` returns None.
        prompts: The rows.
        capacity: Most tokens that a row can hold.
        vocab_size: The target's number of logits; ids beyond it cannot be proposed, and ids that
            the draft lacks get no mass.
        params: How to draw; the draft warps as the target does.
    """

    def __init__(
        self,
        model: nn.Module,
        prompts: Sequence[Sequence[int]],
        *,
        capacity: int,
        vocab_size: int,
        params: SamplingParams,
    ) -> None:
        self.vocab_size, self.params = vocab_size, params
        self.last_id = model.config.get_text_config(decoder=True).vocab_size - 1  # pyrefly: ignore
        self.cache = SlotCache(model, capacity=capacity)
        self.cache.prefill([p[:-2] for p in prompts])

    def propose(
        self, tokens: Tensor, lengths: Tensor, last: Tensor, *, extent: int, uniforms: Tensor
    ) -> Draft:
        """Propose one token per column of ``uniforms``.

        Every round begins with the last two tokens of each row. After a block that was accepted
        whole, the draft has seen neither of them; else rewriting the first changes nothing. So no
        row is a special case.

        Args:
            tokens: The rows so far ``[batch, capacity]``.
            lengths: Their lengths ``[batch]``.
            last: The last position of each row that will ever be kept ``[batch]``; tokens
                proposed beyond it are void.
            extent: The largest length.
            uniforms: The noise ``[batch, drafted]``.
        """
        # A row of one token feeds it twice, to the same slot.
        positions = torch.stack([(lengths - 2).clamp(min=0), lengths - 1], dim=1)
        pair = tokens.gather(1, positions)
        if extent == 1:
            positions, pair = positions[:, 1:], pair[:, 1:]
        drawn, laws = [], []
        for slot in range(uniforms.shape[1]):
            # The target may emit padding ids that the draft has no row for: any row will do there.
            fed = pair.clamp(max=self.last_id)
            logits = self.cache.forward(fed, positions, extent=extent + slot, last_only=True)
            logits = _resize(logits[:, -1], self.vocab_size)
            if self.params.greedy:
                token = logits.argmax(-1)
            else:
                law = warp(logits, self.params)
                laws.append(law)
                token = inverse_cdf(torch.softmax(law, dim=-1), uniforms[:, slot])
            drawn.append(token)
            pair = token.unsqueeze(1)
            positions = torch.minimum(lengths + slot, last).unsqueeze(1)
        return Draft(torch.stack(drawn, dim=1), torch.stack(laws, dim=1) if laws else None)

    def select(self, rows: Tensor) -> None:
        """Keep the given rows."""
        self.cache.select(rows)


def _resize(logits: Tensor, vocab_size: int) -> Tensor:
    missing = vocab_size - logits.shape[-1]
    if missing == 0:
        return logits
    return nn.functional.pad(logits, (0, missing), value=-torch.inf)  # negative: cut
