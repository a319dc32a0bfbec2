"""Where a generated sequence ends: end-of-sequence ids, stop strings, the token budget."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from torch import nn
from transformers import PreTrainedTokenizerBase

from selftrain._core.checks import check_int


class Ending(NamedTuple):
    """The part of a generated sequence that counts."""

    num_tokens: int
    text: str
    reason: Literal["stop", "length"] | None
    """None while the sequence may go on."""


def before_stop(text: str, stop: Sequence[str]) -> str | None:
    """Return what comes before the first stop string to be complete, or None if there is none."""
    found = [(at + len(s), at) for s in stop if (at := text.find(s)) >= 0]
    return text[: min(found)[1]] if found else None


@dataclass(frozen=True, slots=True)
class Stopping:
    """Decides where sequences end; the answer never depends on when it is asked.

    Raises:
        ValueError: If stop strings are given without a tokenizer.
    """

    eos_token_ids: frozenset[int]
    stop: tuple[str, ...] = ()
    tokenizer: PreTrainedTokenizerBase | None = None

    def __post_init__(self) -> None:
        if self.stop and self.tokenizer is None:
            raise ValueError(f"stop={self.stop!r} needs a tokenizer to find the strings in.")

    def ending(self, token_ids: Sequence[int], *, budget: int) -> Ending:
        """Cut ``token_ids`` after the first end-of-sequence id, or before the first stop string.

        The first stop string is the one that is complete first: one that begins earlier may still
        have been incomplete when the row ended. The tokens kept are those up to the last one that
        contributes to the text kept.
        """
        num_tokens = min(len(token_ids), budget)
        reason: Literal["stop", "length"] | None = "length" if num_tokens == budget else None
        for index, token in enumerate(token_ids[:num_tokens]):
            if token in self.eos_token_ids:
                num_tokens, reason = index + 1, "stop"
                break
        text = self.decode(token_ids[:num_tokens])
        before = before_stop(text, self.stop)
        if before is None:
            return Ending(num_tokens, text, reason)
        text = before
        low, high = 0, num_tokens  # the fewest tokens whose text covers what is kept
        while low < high:
            middle = (low + high) // 2
            if self.decode(token_ids[:middle]).startswith(text):
                high = middle
            else:
                low = middle + 1
        return Ending(low, text, "stop")

    def decode(self, token_ids: Sequence[int]) -> str:
        """Return the text of ``token_ids`` without special tokens; empty without a tokenizer."""
        if self.tokenizer is None:
            return ""
        return str(
            self.tokenizer.decode(
                list(token_ids), skip_special_tokens=True, clean_up_tokenization_spaces=False
            )
        )


class StopScan:
    """Follows one row as it grows, and looks at each new token once.

    A stop string may begin in one block and end in another, and may begin inside a token. So every
    look decodes some tokens from before; the whole text is decoded only when something is found.
    """

    def __init__(self, stopping: Stopping) -> None:
        self.stopping, self._scanned = stopping, 0
        # Tokens without text must not push the beginning of a stop string out of sight.
        special = getattr(stopping.tokenizer, "all_special_ids", ()) if stopping.stop else ()
        self._silent = frozenset(special)
        self._tail: list[int] = []
        # A character can take four tokens of one byte each; one more for a space lost at the start.
        self._overlap = 4 * max(map(len, stopping.stop), default=0) + 1

    def advance(self, token_ids: Sequence[int], *, budget: int) -> int | None:
        """Return how many of the row's tokens count if it has ended, else None.

        Args:
            token_ids: All its new tokens, those of earlier calls included.
            budget: The most that it may have.
        """
        stopping = self.stopping
        fresh = token_ids[self._scanned :]
        suspect = len(token_ids) >= budget or not stopping.eos_token_ids.isdisjoint(fresh)
        if stopping.stop and not suspect:
            audible = (t for t in fresh if t not in self._silent)
            self._tail = [*self._tail[-self._overlap :], *audible]
            window = stopping.decode(self._tail)
            suspect = any(s in window for s in stopping.stop)
        self._scanned = len(token_ids)
        if not suspect:
            return None
        ending = stopping.ending(token_ids, budget=budget)
        return None if ending.reason is None else ending.num_tokens


def resolve_eos(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase | None,
    given: int | Collection[int] | None,
) -> frozenset[int]:
    """Return the end-of-sequence ids: given, else the generation config's, else the tokenizer's.

    An empty collection means that no id ends a sequence.
    """
    if given is None:
        given = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    if given is None and tokenizer is not None:
        given = tokenizer.eos_token_id
    if given is None:
        return frozenset()
    given = [given] if isinstance(given, int) else given
    for token in given:
        check_int("eos_token_ids", token, low=0)
    return frozenset(given)
