"""How tokens are drawn and judged: one rule for a whole call of ``generate``."""

from collections.abc import Callable
from functools import partial
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from selftrain.decoding.drafters.protocol import Draft
from selftrain.decoding.law import warp
from selftrain.decoding.noise import BlockNoise
from selftrain.decoding.params import SamplingParams
from selftrain.kernels._dispatch import Backend, choose
from selftrain.ops.lenience import (
    LenienceRule,
    LenientVerdict,
    MixtureLenience,
    verify_lenient,
)
from selftrain.ops.philox import Stream
from selftrain.ops.verification import sample_tokens, verify_draft
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


class KernelRule:
    """The sampling rules in Triton: raw logits go in, and the kernels warp and make the noise."""

    def __init__(self, params: SamplingParams, verifier: Verifier, backend: Backend) -> None:
        self.verifier: Verifier = verifier
        self._options: dict[str, Any] = {
            "temperature": params.temperature,
            "top_k": params.top_k,
            "top_p": params.top_p,
            "min_p": params.min_p,
            "backend": backend,
        }

    def pick(self, logits: Tensor, noise: BlockNoise, slot: int) -> tuple[Tensor, Tensor | None]:
        """Draw from the warped law, and pass the raw logits on."""
        if self.verifier == "coupled":
            position = noise.starts + slot
            none = logits.new_zeros(len(logits), 0, dtype=torch.long)
            verdict = verify_draft(
                logits.unsqueeze(1),
                None,
                none,
                rule="coupled",
                seeds=noise.seeds,
                starts=position,
                **self._options,
            )
            return verdict.next_tokens, None
        tokens = sample_tokens(
            logits,
            seeds=noise.seeds,
            positions=noise.starts,
            stream=Stream.DRAFT,
            slot=slot,
            **self._options,
        )
        return tokens, logits

    def judge(self, logits: Tensor, draft: Draft, noise: BlockNoise) -> Judgement:
        """Verify on the device."""
        return verify_draft(
            logits,
            draft.logits,
            draft.tokens,
            rule=self.verifier,
            seeds=noise.seeds,
            starts=noise.starts,
            **self._options,
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
    params: SamplingParams,
    verifier: Verifier | None,
    lenience: LenienceRule | None,
    *,
    backend: Backend,
    like: Tensor,
) -> Rule:
    """Return the rule for these parameters; at temperature 0 every verifier is the greedy one.

    Args:
        params: How to draw.
        verifier: How to test; None for the default.
        lenience: A lossy rule, or None.
        backend: Where the sampling rules run; greedy and lossy ones are eager torch.
        like: A tensor of the device and dtype of the logits.

    Raises:
        ValueError: If the backend cannot run there.
    """
    chosen = choose(backend, like)
    if params.greedy:
        return GreedyRule() if lenience is None else LenientGreedyRule(lenience)
    if lenience is not None:
        rule = "block" if verifier == "block" else "token"
        return SampledRule(params, partial(verify_lenient, lenience=lenience, rule=rule))
    if chosen == "triton":
        return KernelRule(params, verifier or "block", backend)
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
