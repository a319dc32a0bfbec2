"""How tokens are drawn and judged: one rule for a whole call of ``generate``."""

from collections.abc import Callable
from functools import partial
from typing import Literal, Protocol

import torch
from torch import Tensor

from selftrain.decoding.drafters.protocol import Draft
from selftrain.decoding.noise import BlockNoise
from selftrain.decoding.params import SamplingParams
from selftrain.decoding.sampler import warp
from selftrain.ops.lenience import (
    LenienceRule,
    LenientVerdict,
    MixtureLenience,
    verify_lenient,
)
from selftrain.ops.verify import (
    Verdict,
    verify_block,
    verify_coupled,
    verify_greedy,
    verify_tokens,
)
from selftrain.ops.warp import inverse_cdf

Verifier = Literal["token", "block", "coupled"]
Judgement = Verdict | LenientVerdict


class Rule(Protocol):
    """Draws proposals from the draft's raw logits, and judges them by the target's."""

    def pick(self, logits: Tensor, noise: BlockNoise, slot: int) -> tuple[Tensor, Tensor | None]:
        """Draw one token a row from ``[batch, vocab]``; see :class:`drafters.Pick`."""
        ...

    def judge(self, logits: Tensor, draft: Draft, noise: BlockNoise) -> Judgement:
        """Say what stands, from the target's raw logits ``[batch, drafted + 1, vocab]``."""
        ...


class GreedyRule:
    """Both models take their most likely token."""

    def pick(self, logits: Tensor, noise: BlockNoise, slot: int) -> tuple[Tensor, Tensor | None]:
        """Return the most likely token."""
        return logits.argmax(-1), None

    def judge(self, logits: Tensor, draft: Draft, noise: BlockNoise) -> Verdict:
        """Accept while the draft agrees."""
        return verify_greedy(logits, draft.tokens)


class LenientGreedyRule:
    """Both models take their most likely token; the target lets pass what is not its own."""

    def __init__(self, lenience: LenienceRule) -> None:
        self.lenience = lenience

    def pick(self, logits: Tensor, noise: BlockNoise, slot: int) -> tuple[Tensor, Tensor | None]:
        """Return the most likely token."""
        return logits.argmax(-1), None

    def judge(self, logits: Tensor, draft: Draft, noise: BlockNoise) -> Judgement:
        """Accept what the target likes enough, at temperature 1."""
        return verify_lenient(
            logits,
            None,
            draft.tokens,
            lenience=self.lenience,
            accept_uniforms=noise.accept,
            emit_uniforms=noise.emit,
            greedy=True,
        )


class SampledRule:
    """Draft by inverse CDF, one uniform a token; accept and resample by ``verify``."""

    def __init__(self, params: SamplingParams, verify: Callable[..., Judgement]) -> None:
        self.params, self.verify = params, verify

    def pick(self, logits: Tensor, noise: BlockNoise, slot: int) -> tuple[Tensor, Tensor | None]:
        """Draw from the warped law."""
        law = warp(logits, self.params)
        return inverse_cdf(torch.softmax(law, dim=-1), noise.draft[:, slot]), law

    def judge(self, logits: Tensor, draft: Draft, noise: BlockNoise) -> Judgement:
        """Apply the accept test and draw what follows."""
        return self.verify(
            warp(logits, self.params),
            draft.logits,
            draft.tokens,
            accept_uniforms=noise.accept,
            emit_uniforms=noise.emit,
        )


class CoupledRule:
    """Both models take the argmax of logits plus the same noise: the draft guesses the sample."""

    def __init__(self, params: SamplingParams) -> None:
        self.params = params

    def pick(self, logits: Tensor, noise: BlockNoise, slot: int) -> tuple[Tensor, Tensor | None]:
        """Return what the draft would sample with the target's noise."""
        law = warp(logits, self.params)
        return (law + noise.gumbel(law.shape[-1], law.dtype)[:, slot]).argmax(-1), None

    def judge(self, logits: Tensor, draft: Draft, noise: BlockNoise) -> Verdict:
        """Accept while the draft guessed right."""
        law = warp(logits, self.params)
        shared = noise.gumbel(law.shape[-1], law.dtype)
        return verify_coupled(law, draft.tokens, gumbel=shared[:, : law.shape[1]])


def rule_for(
    params: SamplingParams, verifier: Verifier | None, lenience: LenienceRule | None
) -> Rule:
    """Return the rule for these parameters; at temperature 0 every verifier is the greedy one."""
    if params.greedy:
        return GreedyRule() if lenience is None else LenientGreedyRule(lenience)
    if lenience is not None:
        rule = "block" if verifier == "block" else "token"
        return SampledRule(params, partial(verify_lenient, lenience=lenience, rule=rule))
    if verifier == "coupled":
        return CoupledRule(params)
    return SampledRule(params, verify_tokens if verifier == "token" else verify_block)


def check_lenience(verifier: Verifier | None, lenience: LenienceRule | None) -> None:
    """Raise unless the lenience is one, and combines with the verifier.

    Raises:
        TypeError: If it is no lenience.
        ValueError: If the verifier is lossless by its nature.
    """
    if lenience is None:
        return
    if not isinstance(lenience, LenienceRule):
        raise TypeError(
            "lenience must be a Lenience, LeviathanLenience, MixtureLenience or TypicalAcceptance "
            f"of selftrain.ops, got {lenience!r}."
        )
    if verifier == "coupled":
        raise ValueError("verifier='coupled' gives plain sampling's tokens; it takes no lenience.")
    if verifier == "block" and not isinstance(lenience, MixtureLenience):
        raise ValueError(
            f"verifier='block' needs a law to verify against, which {type(lenience).__name__} is "
            "not; use MixtureLenience, or verifier='token'."
        )
