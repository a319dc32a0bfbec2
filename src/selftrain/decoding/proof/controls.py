"""Negative controls: mistakes that people have made, each of which the kit must detect.

A proof that cannot fail proves nothing. Each of these looks right on most inputs.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from selftrain.decoding.proof.enumeration import Drafting, Verifier
from selftrain.decoding.proof.proving import Scenario, default_scenarios
from selftrain.decoding.proof.tabular import TabularModel, one_hot, random_model
from selftrain.decoding.proof.walks import Keying
from selftrain.ops.verify import Verdict, verify_block, verify_tokens
from selftrain.ops.warp import inverse_cdf

FAULTY_KEYINGS: dict[str, Keying] = {
    "accept noise by position": Keying(accept="position"),
    "draft noise by position": Keying(draft="position"),
    "accept and draft noise by position": Keying(accept="position", draft="position"),
    "draft's noise emits too": Keying(shared=True),
}
"""Ways to address noise that bias block verification, the last one token verification too; for
:func:`measure_reuse`."""


@dataclass(frozen=True, slots=True)
class Fault:
    """A verifier that is wrong, or a right one that is told something wrong."""

    verifier: Verifier
    scenarios: tuple[Scenario, ...]
    """Where it shows; for :func:`prove`."""


def accepts_at_equality(
    target_logits: Tensor,
    draft_logits: Tensor | None,
    draft_tokens: Tensor,
    /,
    *,
    accept_uniforms: Tensor,
    emit_uniforms: Tensor,
) -> Verdict:
    """Accept where u <= p/q: at u = 0 also a token that the target never samples.

    ``torch.rand`` returns 0 once in 2^24 draws. In transformers; reported of SGLang (#35771).
    """
    # u = 0 against p = 0 is the only case that differs by more than a rounding step.
    p = target_logits[:, :-1].softmax(-1)
    barred = p.gather(-1, draft_tokens.clamp(min=0).unsqueeze(-1)).squeeze(-1) == 0
    lucky = barred & (accept_uniforms == 0) & (draft_tokens >= 0)
    allowed = target_logits.clone()
    allowed[:, :-1][lucky] = 0.0
    return verify_tokens(
        allowed,
        draft_logits,
        draft_tokens,
        accept_uniforms=accept_uniforms,
        emit_uniforms=emit_uniforms,
    )


def resamples_from_target(
    target_logits: Tensor,
    draft_logits: Tensor | None,
    draft_tokens: Tensor,
    /,
    *,
    accept_uniforms: Tensor,
    emit_uniforms: Tensor,
) -> Verdict:
    """Draw the token after a rejection from p, not from the residual law."""
    verdict = verify_tokens(
        target_logits,
        draft_logits,
        draft_tokens,
        accept_uniforms=accept_uniforms,
        emit_uniforms=emit_uniforms,
    )
    row = torch.arange(len(draft_tokens))
    p = target_logits[row, verdict.num_accepted].softmax(-1)
    return verdict._replace(next_tokens=inverse_cdf(p, emit_uniforms[row, verdict.num_accepted]))


def reuses_accept_uniform(
    target_logits: Tensor,
    draft_logits: Tensor | None,
    draft_tokens: Tensor,
    /,
    *,
    accept_uniforms: Tensor,
    emit_uniforms: Tensor,
) -> Verdict:
    """Draw the token after a rejection with the uniform that rejected (vllm-ascend #16370)."""
    emit = torch.cat([accept_uniforms, emit_uniforms[:, -1:]], 1)
    return verify_tokens(
        target_logits,
        draft_logits,
        draft_tokens,
        accept_uniforms=accept_uniforms,
        emit_uniforms=emit,
    )


def stops_at_first_failure(
    target_logits: Tensor,
    draft_logits: Tensor | None,
    draft_tokens: Tensor,
    /,
    *,
    accept_uniforms: Tensor,
    emit_uniforms: Tensor,
) -> Verdict:
    """Apply the tests of block verification one by one, up to the first that fails."""

    def verdict(uniforms: Tensor) -> Verdict:
        return verify_block(
            target_logits,
            draft_logits,
            draft_tokens,
            accept_uniforms=uniforms,
            emit_uniforms=emit_uniforms,
        )

    never = torch.full_like(accept_uniforms, 1 - 2.0**-52)
    slots = torch.arange(accept_uniforms.shape[1])
    alone = [verdict(torch.where(slots == i, accept_uniforms, never)).num_accepted for i in slots]
    passed = torch.stack([count > i for i, count in zip(slots, alone, strict=True)], 1)
    return verdict(torch.where(passed.cumprod(1) > 0, accept_uniforms, never))


def drops_unlikely_token(
    target_logits: Tensor,
    draft_logits: Tensor | None,
    draft_tokens: Tensor,
    /,
    *,
    accept_uniforms: Tensor,
    emit_uniforms: Tensor,
) -> Verdict:
    """Discard a drafted token, and all after it, because the draft gave it less than 0.3.

    To stop after such a token is right; but once drawn, it must be verified.
    """
    if draft_logits is None:
        raise ValueError("a draft chosen without chance has no unlikely tokens.")
    q = draft_logits.softmax(-1).gather(-1, draft_tokens.clamp(min=0).unsqueeze(-1)).squeeze(-1)
    sure = (q >= 0.3).cumprod(1) > 0
    return verify_tokens(
        target_logits,
        draft_logits,
        draft_tokens.masked_fill(~sure, -1),
        accept_uniforms=accept_uniforms,
        emit_uniforms=emit_uniforms,
    )


def faults() -> dict[str, Fault]:
    """Return every mistake in a verifier or in what it is told, by name."""
    names = ("3 tokens, 2 drafted", "no token in common")
    usual = tuple(s for s in default_scenarios() if s.name in names)
    target, draft = random_model(3, seed=90), random_model(3, seed=91)
    two = Drafting(num_draft_tokens=2)

    def told(name: str, drawn_from: object, reported: TabularModel) -> tuple[Scenario, ...]:
        drafting = replace(two, reported=reported)
        return (Scenario(name, target.warped(top_k=2), drawn_from, drafting),)  # pyrefly: ignore

    wrong = {
        "u <= p/q": accepts_at_equality,
        "resampling from the target": resamples_from_target,
        "accept uniform used again": reuses_accept_uniform,
        "first failure in the block rule": stops_at_first_failure,
        "unlikely token dropped": drops_unlikely_token,
    }
    return {
        **{name: Fault(verifier, usual) for name, verifier in wrong.items()},
        "most likely draft, law as if drawn": Fault(
            verify_tokens, told("most likely token", one_hot(draft), draft)
        ),
        "raw draft law instead of warped": Fault(
            verify_tokens, told("raw law", draft.warped(top_k=2), draft)
        ),
    }
