"""Lossy verification: accept more of the draft, and know how far the output strays from the target.

Legend: ``B`` batch, ``K`` drafted tokens, ``V`` vocabulary; p is the target's law, q the draft's.
Every rule here replaces the law of the output at a tested position by another one, whose total
variation distance to p, the *distortion*, follows from p, q and the rule. No rule that accepts with
probability a can keep the distortion below a - (1 - TV(p, q)): :class:`MixtureLenience` and
:class:`Lenience` with its usual residual reach that bound, the others do not.
"""

from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor

from selftrain._core.checks import check_choice, check_range
from selftrain.ops.verify import (
    _block_rule,
    _check_shapes,
    _Drafted,
    _drafted,
    _emit,
    _excess,
    _rows,
    _softmax,
    _token_rule,
)

LenienceKind = Literal["linear", "square", "exponential"]
LenientResidual = Literal["p-q", "p-lq"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Lenience:
    r"""Accept drafted tokens as if the target liked them more than it does.

    A token stands while :math:`u < f(p(y)) / q(y)` with :math:`f(p) = p/\epsilon` (linear),
    :math:`p/\epsilon^2` (square) or :math:`p^\epsilon` (exponential); all three at least p. Linear
    lenience never makes a token more than :math:`1/\epsilon` times as likely as the target does.
    At temperature 0 a token also stands where :math:`f(p(y)) > \max_v p(v)`, p being the law at
    temperature 1. Source: DistillSpec (arXiv 2310.08461), section 5.
    """

    epsilon: float
    """How strict, in (0, 1]: 1 is lossless; towards 0 everything stands."""
    kind: LenienceKind = "linear"
    """Which f."""
    residual: LenientResidual = "p-q"
    """Law of the token after a rejection: max(0, p - q), or max(0, p - l q) with l = p / f(p)."""

    def __post_init__(self) -> None:
        check_range("epsilon", self.epsilon, low=0.0, low_open=True, high=1.0)
        check_choice("kind", self.kind, ("linear", "square", "exponential"))
        check_choice("residual", self.residual, ("p-q", "p-lq"))

    @property
    def lossless(self) -> bool:
        """Whether the output law is the target's."""
        return self.epsilon == 1


@dataclass(frozen=True, kw_only=True, slots=True)
class LeviathanLenience:
    r"""Replace q by :math:`l q` in the accept test and in the residual.

    The same as linear :class:`Lenience` with :math:`\epsilon = l` and ``residual="p-lq"``; at
    temperature 0 a token stands where :math:`p(y) > l \max_v p(v)`.
    Source: Leviathan et al., arXiv 2211.17192, appendix on lenience.
    """

    lenience: float
    """The factor l, in (0, 1]: 1 is lossless."""

    def __post_init__(self) -> None:
        check_range("lenience", self.lenience, low=0.0, low_open=True, high=1.0)

    @property
    def lossless(self) -> bool:
        """Whether the output law is the target's."""
        return self.lenience == 1


@dataclass(frozen=True, kw_only=True, slots=True)
class MixtureLenience:
    r"""Verify losslessly against the mixture :math:`o = (1 - \lambda) p + \lambda q`.

    A token stands with probability :math:`1 - (1 - \lambda) TV(p, q)`, at a distortion of exactly
    :math:`\lambda\, TV(p, q)`: the budget is set directly, and no rule accepts more within it. At
    temperature 0, where p and q are one-hot, a token that is not the target's first choice stands
    with probability :math:`\lambda`.
    """

    weight: float
    """The draft's share :math:`\\lambda`, in [0, 1]: 0 is lossless, 1 decodes with the draft."""

    def __post_init__(self) -> None:
        check_range("weight", self.weight, low=0.0, high=1.0)

    @property
    def lossless(self) -> bool:
        """Whether the output law is the target's."""
        return self.weight == 0


@dataclass(frozen=True, kw_only=True, slots=True)
class TypicalAcceptance:
    r"""Accept every drafted token that the target finds likely enough, without chance.

    A token stands where :math:`p(y) > \min(\epsilon, \delta e^{-H(p)})`; after a rejection comes
    the most likely token of p. At temperature 0 the same, with p at temperature 1.
    Source: Medusa (Cai et al., arXiv 2401.10774), section on typical acceptance.
    """

    epsilon: float = 0.09
    """The highest threshold, in (0, 1)."""
    delta: float = 0.3
    """Share of the typical probability exp(-entropy), in (0, 1)."""

    def __post_init__(self) -> None:
        for name in ("epsilon", "delta"):
            value = getattr(self, name)
            check_range(name, value, low=0.0, low_open=True, high=1.0, high_open=True)

    @property
    def lossless(self) -> bool:
        """Whether the output law is the target's: never."""
        return False


LenienceRule = Lenience | LeviathanLenience | MixtureLenience | TypicalAcceptance


class LenientVerdict(NamedTuple):
    """The outcome of one block for every row, and what it cost."""

    num_accepted: Int64[Tensor, " batch"]
    """How many drafted tokens stand, in [0, K]."""
    next_tokens: Int64[Tensor, " batch"]
    """The token after them; -1 where the target's logits are no law."""
    overlap: Float[Tensor, "batch drafted"]
    """Probability of acceptance at each drafted position; 0 in void slots."""
    distortion: Float[Tensor, "batch drafted"]
    """Total variation distance between the law of the output at each drafted position, once it is
    reached, and p; 0 in void slots. Where nothing was tested the output follows p."""


def verify_lenient(
    target_logits: Float[Tensor, "batch places vocab"],
    draft_logits: Float[Tensor, "batch places-1 vocab"] | None,
    draft_tokens: Int64[Tensor, "batch places-1"],
    *,
    lenience: LenienceRule,
    accept_uniforms: Float64[Tensor, "batch places-1"],
    emit_uniforms: Float64[Tensor, "batch places"],
    rule: Literal["token", "block"] = "token",
    greedy: bool = False,
) -> LenientVerdict:
    """Accept drafted tokens by a lossy rule and sample what follows.

    With the same noise, a rule whose ``lossless`` is True decides as the lossless verifiers do.

    Args:
        target_logits: Warped logits of the target, one row more than was drafted.
        draft_logits: Warped logits that the draft tokens were sampled from; None if one-hot.
        draft_tokens: Drafted ids; void from the first -1 on.
        lenience: The rule.
        accept_uniforms: Noise of the accept tests, in [0, 1).
        emit_uniforms: Noise of the next token, one for each place where the block may end.
        rule: "block" tests whole prefixes, see :func:`selftrain.ops.verify_block`. Only a mixture
            can: it alone is a law of its own that the output is verified against.
        greedy: Decode at temperature 0: ``target_logits`` are then those of temperature 1, the
            next token is the most likely one, and ``draft_logits`` are not looked at.

    Returns:
        The verdict. The distance between the law of a whole text and the target's is at most the
        expected sum of ``distortion`` over the positions that were reached.

    Raises:
        ValueError: If the shapes do not belong together, or the rule has no block form.
    """
    check_choice("rule", rule, ("token", "block"))
    if rule == "block" and not isinstance(lenience, MixtureLenience):
        raise ValueError(
            f"rule='block' needs a law to verify against, which {type(lenience).__name__} is not; "
            "use MixtureLenience, or rule='token'."
        )
    if greedy:
        return _greedy(target_logits, draft_tokens, lenience, accept_uniforms)
    block = _drafted(target_logits, draft_logits, draft_tokens)
    if isinstance(lenience, MixtureLenience):
        return _mixture(block, lenience.weight, rule, accept_uniforms, emit_uniforms)
    p, q, index = block.p[:, :-1], block.q, block.tokens.unsqueeze(-1)
    if q is None:
        q = torch.zeros_like(p).scatter_(-1, index, 1.0)
    accepted, residual = _masses(p, q, lenience)
    chance = accepted.gather(-1, index).double() / q.gather(-1, index)
    chance = chance.squeeze(-1).masked_fill(block.void, 0)
    num_accepted = (accept_uniforms < chance).cumprod(-1).sum(-1)
    excess = (_law(accepted, residual) - p).clamp_(min=0).sum(-1)
    return LenientVerdict(
        num_accepted,
        _next_tokens(block, residual, num_accepted, emit_uniforms),
        accepted.sum(-1).masked_fill(block.void, 0),
        excess.masked_fill(block.void, 0),
    )


def output_law(
    target_logits: Float[Tensor, "*batch vocab"],
    draft_logits: Float[Tensor, "*batch vocab"],
    *,
    lenience: LenienceRule,
) -> Float[Tensor, "*batch vocab"]:
    """Return the law of the output at a position where a token of the draft is tested.

    Args:
        target_logits: Warped logits of p.
        draft_logits: Warped logits of q.
        lenience: The rule.

    Example:
        >>> p, q = torch.tensor([0.5, 0.5]), torch.tensor([0.9, 0.1])
        >>> output_law(p.log(), q.log(), lenience=MixtureLenience(weight=0.5))
        tensor([0.7000, 0.3000])
    """
    p, q = _softmax(target_logits), _softmax(draft_logits)
    if isinstance(lenience, MixtureLenience):
        return torch.lerp(p, q, lenience.weight)
    return _law(*_masses(p, q, lenience))


def _mixture(
    block: _Drafted, weight: float, rule: str, accept_uniforms: Tensor, emit_uniforms: Tensor
) -> LenientVerdict:
    # o / q = (1 - w) p / q + w, and max(0, o - q) = (1 - w) max(0, p - q): o itself is not needed.
    ratio = ((1 - weight) * block.ratio + weight).masked_fill(block.void, 0)
    block = block._replace(ratio=ratio)
    if rule == "block":
        verdict = _block_rule(block, accept_uniforms, emit_uniforms, draft_share=weight)
    else:
        verdict = _token_rule(block, accept_uniforms, emit_uniforms)
    distortion = (weight * (1 - verdict.overlap)).clamp(min=0).masked_fill(block.void, 0)
    return LenientVerdict(
        verdict.num_accepted, verdict.next_tokens, verdict.overlap + distortion, distortion
    )


def _masses(
    p: Tensor, q: Tensor, lenience: Lenience | LeviathanLenience | TypicalAcceptance
) -> tuple[Tensor, Tensor]:
    """Return the mass of every token that is drafted and stands, and what a fall is replaced by."""
    if isinstance(lenience, TypicalAcceptance):
        best = torch.zeros_like(p).scatter_(-1, p.argmax(-1, keepdim=True), 1.0)
        return q * (p > _threshold(p, lenience).unsqueeze(-1)), best
    discount = _discount(p, lenience)
    usual = isinstance(lenience, Lenience) and lenience.residual == "p-q"
    return torch.minimum(q, p / discount), _excess(p, q if usual else q * discount, None)


def _law(accepted: Tensor, residual: Tensor) -> Tensor:
    refused = (1 - accepted.sum(-1, keepdim=True)).clamp(min=0)
    tiny = torch.finfo(residual.dtype).tiny
    return accepted + residual * (refused / residual.sum(-1, keepdim=True).clamp(min=tiny))


def _discount(p: Tensor, lenience: Lenience | LeviathanLenience) -> Tensor | float:
    """Return l = p / f(p), by which the test shrinks q."""
    if isinstance(lenience, LeviathanLenience):
        return lenience.lenience
    match lenience.kind:
        case "linear":
            return lenience.epsilon
        case "square":
            return lenience.epsilon**2
        case _:
            return p.pow(1 - lenience.epsilon).clamp(min=torch.finfo(p.dtype).tiny)


def _threshold(p: Tensor, lenience: TypicalAcceptance) -> Tensor:
    entropy = torch.special.entr(p).sum(-1)
    return (lenience.delta * (-entropy).exp()).clamp(max=lenience.epsilon)


def _next_tokens(
    block: _Drafted, residual: Tensor, num_accepted: Tensor, emit_uniforms: Tensor
) -> Tensor:
    num_drafted = block.void.shape[1]
    weights = _rows(residual, num_accepted.clamp(max=num_drafted - 1)) if num_drafted else None
    return _emit(block, num_accepted, emit_uniforms, _rows(block.p, num_accepted), weights)


def _greedy(
    target_logits: Tensor, draft_tokens: Tensor, lenience: LenienceRule, accept_uniforms: Tensor
) -> LenientVerdict:
    """Decide at temperature 0, where the target alone would take its most likely token."""
    _check_shapes(target_logits, None, draft_tokens)
    highest, best = target_logits.max(-1)
    best = torch.where(highest.isfinite(), best, -1)
    drafted = (draft_tokens >= 0) & (best[:, :-1] >= 0)
    agrees = (best[:, :-1] == draft_tokens) & drafted
    if isinstance(lenience, MixtureLenience):
        chance = torch.full(draft_tokens.shape, lenience.weight, device=draft_tokens.device)
    else:
        chance = _likely(target_logits[:, :-1], draft_tokens, lenience).float()
    chance = torch.where(agrees, 1.0, chance).masked_fill(~drafted, 0)
    num_accepted = (accept_uniforms < chance).cumprod(-1).sum(-1)
    next_tokens = best.gather(1, num_accepted.unsqueeze(1)).squeeze(1)
    return LenientVerdict(num_accepted, next_tokens, chance, chance.masked_fill(agrees, 0))


def _likely(
    target_logits: Tensor,
    draft_tokens: Tensor,
    lenience: Lenience | LeviathanLenience | TypicalAcceptance,
) -> Tensor:
    """Return which drafted tokens are likely enough to pass for the target's first choice."""
    p = _softmax(target_logits)
    p_token = p.gather(-1, draft_tokens.clamp(min=0).unsqueeze(-1)).squeeze(-1)
    if isinstance(lenience, TypicalAcceptance):
        return p_token > _threshold(p, lenience)
    # Strict, so that a tie without lenience is decided as plain decoding does.
    return p_token / _discount(p_token, lenience) > p.amax(-1)
