"""What to sample and what came back: the value objects that every sampler shares."""

from dataclasses import dataclass
from typing import Literal

from selftrain._core.checks import check_int, check_range


@dataclass(frozen=True, kw_only=True, slots=True)
class SamplingParams:
    """How to draw completions.

    The default is pure ancestral sampling, the published setting of on-policy distillation. Logits
    are warped in the order temperature, top-k, top-p, min-p (as in transformers).
    """

    max_new_tokens: int = 256
    """Most tokens to generate, the end-of-sequence token included."""
    temperature: float = 1.0
    """Divides the logits; 0 takes the most likely token (ties: the lowest id)."""
    top_k: int | None = None
    """Keep the k most likely tokens; None keeps all."""
    top_p: float = 1.0
    """Keep the smallest set of most likely tokens whose mass reaches top_p, in (0, 1]."""
    min_p: float = 0.0
    """Drop tokens less likely than min_p times the most likely one, in [0, 1)."""
    stop: tuple[str, ...] = ()
    """Strings that end a completion; the text is cut before them."""
    seed: int | None = None
    """Makes the result a function of (seed, row) alone; None draws a fresh seed."""

    def __post_init__(self) -> None:
        check_int("max_new_tokens", self.max_new_tokens, low=1)
        check_range("temperature", self.temperature, low=0.0, high=float("inf"), high_open=True)
        if self.top_k is not None:
            check_int("top_k", self.top_k, low=1)
        check_range("top_p", self.top_p, low=0.0, low_open=True, high=1.0)
        check_range("min_p", self.min_p, low=0.0, high=1.0, high_open=True)
        if isinstance(self.stop, str) or not all(isinstance(s, str) and s for s in self.stop):
            raise ValueError(f"stop must be a tuple of non-empty strings, got {self.stop!r}.")
        if self.seed is not None:
            check_int("seed", self.seed, low=0, high=2**63 - 1)

    @property
    def greedy(self) -> bool:
        """Whether the most likely token is always taken."""
        return self.temperature == 0


@dataclass(frozen=True, slots=True)
class Completion:
    """One generated continuation of a prompt."""

    text: str
    """The decoded text, special tokens removed and cut before a stop string."""
    token_ids: tuple[int, ...] | None
    """The generated ids, the end-of-sequence token included; None where a server gives none."""
    log_probs: tuple[float, ...] | None
    """Natural log-probability of each token under the law sampled from (after warping)."""
    finish_reason: Literal["stop", "length", "error"]
    """Ended by an end-of-sequence token or stop string, by the token budget, or by a failure."""
