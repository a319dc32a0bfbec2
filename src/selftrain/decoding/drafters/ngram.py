"""Prompt lookup: what followed the last time, follows again."""

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from selftrain._core.checks import check_int
from selftrain.decoding.drafters.protocol import Draft, Pick, Rows, Setting


class NGramDrafter:
    """Propose what followed the last earlier occurrence of a row's trailing n-gram.

    The longest n-gram that occurs earlier in the row decides; among its occurrences the latest. No
    model is run, so even few accepted tokens pay: good for summaries, edits, code and retrieval,
    where the output repeats its prompt. A copy that reaches the end of the row goes on with itself,
    so that a loop of any period is continued.
    Source: Saxena, "Prompt lookup decoding" (2023); Yang et al., arXiv 2304.04487.

    Args:
        max_ngram: The longest n-gram that is looked up.
        min_ngram: The shortest; a row without a match proposes nothing in that block.

    Raises:
        ValueError: If not ``1 <= min_ngram <= max_ngram``.
    """

    def __init__(self, max_ngram: int = 3, min_ngram: int = 1) -> None:
        check_int("max_ngram", max_ngram, low=1)
        check_int("min_ngram", min_ngram, low=1, high=max_ngram)
        self.max_ngram, self.min_ngram = max_ngram, min_ngram

    @property
    def models(self) -> tuple[nn.Module, ...]:
        """None at all."""
        return ()

    def check(self, target: PreTrainedModel) -> None:
        """Accept every target: only its tokens are read."""

    def start(self, setting: Setting) -> "NGramDrafter":
        """Return itself: it remembers nothing between blocks."""
        return self

    def propose(self, rows: Rows, num_tokens: int, pick: Pick) -> Draft:
        """Copy up to ``num_tokens`` tokens; they are determined, so ``pick`` is not used."""
        found, start = self._find(rows)
        slots = torch.arange(num_tokens, device=start.device)
        # Modulo the distance to the end: beyond it the copy reads what it wrote.
        source = start + slots % (rows.lengths.unsqueeze(1) - start)
        keep = found & (rows.lengths.unsqueeze(1) + slots <= rows.last.unsqueeze(1))
        return Draft(rows.tokens.gather(1, source).masked_fill(~keep, -1), None)

    def select(self, rows: Tensor) -> None:
        """Do nothing: there is no state."""

    def _find(self, rows: Rows) -> tuple[Tensor, Tensor]:
        """Return whether there is a match, and where the copy starts, both ``[batch, 1]``."""
        text = rows.tokens[:, : rows.extent]
        index = torch.arange(rows.extent, device=text.device)
        end = rows.lengths.unsqueeze(1) - 1
        agrees = index < end  # a match ends before the row does
        length = torch.zeros_like(text)
        for back in range(min(self.max_ngram, rows.extent)):
            same = text == text.gather(1, (end - back).clamp(min=0))
            # At index i: do the tokens `back` places before i and before the end agree too?
            agrees = agrees & torch.nn.functional.pad(same, (back, -back))
            length += agrees
        best = (length * rows.extent + index).argmax(1, keepdim=True)
        found = length.gather(1, best) >= self.min_ngram
        return found, torch.where(found, best + 1, 0)
