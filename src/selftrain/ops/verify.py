"""Speculative verification: which drafted tokens stand, and what follows them.

Legend: ``B`` batch, ``K`` drafted tokens, ``V`` vocabulary. Laws are those after warping: the
target's ``p`` must be what plain decoding samples from, the draft's ``q`` what the draft tokens
were really sampled from. The output law is then ``p`` exactly, whatever ``q`` is.

Nothing here synchronises with the device, sorts, or makes a float64 copy of the vocabulary but for
the one row that is emitted from. Bad logits are therefore not raised but marked: the next token is
-1 where the law that it should come from is none (NaN, +inf, or no token left).
"""

from typing import NamedTuple

import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor

from selftrain.ops.warp import inverse_cdf


class Verdict(NamedTuple):
    """The outcome of one block for every row."""

    num_accepted: Int64[Tensor, " batch"]
    """How many drafted tokens stand, in [0, K]."""
    next_tokens: Int64[Tensor, " batch"]
    """The token after them: from the residual law if drafted tokens remain, else from the target;
    -1 where its logits are no law."""
    overlap: Float[Tensor, "batch drafted"]
    """Sum over v of min(p, q) at each drafted position, the probability of acceptance there; 0 in
    void slots. Greedy and coupled verification have no chance left: 1 where the token agrees."""


def verify_tokens(
    target_logits: Float[Tensor, "batch places vocab"],
    draft_logits: Float[Tensor, "batch places-1 vocab"] | None,
    draft_tokens: Int64[Tensor, "batch places-1"],
    *,
    accept_uniforms: Float64[Tensor, "batch places-1"],
    emit_uniforms: Float64[Tensor, "batch places"],
) -> Verdict:
    r"""Accept drafted tokens one by one and sample what follows (exact for any draft).

    Token :math:`y_i` stands while :math:`u_i < p_i(y_i) / q_i(y_i)`; at the first that falls the
    next token comes from :math:`\max(0, p_i - q_i)` normalised; if all stand, from :math:`p_{K+1}`.
    Source: Leviathan et al., arXiv 2211.17192, algorithm 1; Chen et al., arXiv 2302.01318.

    Args:
        target_logits: Warped logits of the target, one row more than was drafted.
        draft_logits: Warped logits that the draft tokens were sampled from; None if they were
            chosen without chance (n-grams, a greedy draft), so that q is one-hot at the token.
        draft_tokens: Drafted ids; -1 where a row drafted less than the others. Everything from
            the first -1 on is void: the next token there comes from the target itself. So it does
            from the first token on that ``draft_logits`` give no mass.
        accept_uniforms: Noise of the accept tests, in [0, 1).
        emit_uniforms: Noise of the next token, one for each place where the block may end.

    Returns:
        The verdict; computed in float32, or float64 where logits are.

    Raises:
        ValueError: If the shapes do not belong together; different vocabularies among them.
    """
    block = _drafted(target_logits, draft_logits, draft_tokens)
    return _token_rule(block, accept_uniforms, emit_uniforms)


def verify_block(
    target_logits: Float[Tensor, "batch places vocab"],
    draft_logits: Float[Tensor, "batch places-1 vocab"] | None,
    draft_tokens: Int64[Tensor, "batch places-1"],
    *,
    accept_uniforms: Float64[Tensor, "batch places-1"],
    emit_uniforms: Float64[Tensor, "batch places"],
) -> Verdict:
    r"""Accept the longest prefix that a test of the whole prefix lets stand (exact for any draft).

    With :math:`\pi_0 = 1` and :math:`\pi_i = \min(1, \pi_{i-1} p_i(y_i)/q_i(y_i))`, the first i
    tokens stand if :math:`u_i < h_i`, whatever became of shorter prefixes, where

    .. math:: h_i = \frac{S_i}{S_i + 1 - \pi_i}, \quad
              S_i = \sum_v \max(0, \pi_i p_{i+1}(v) - q_{i+1}(v)), \quad h_K = \pi_K,

    and the next token comes from the summands of :math:`S_i`, normalised, or from :math:`p_{K+1}`.
    Given the first i drafted tokens, all of them stand with probability :math:`\pi_i`: the expected
    number is never less than that of :func:`verify_tokens`, and the same for one token or a one-hot
    draft.
    Source: Sun et al., "Block verification accelerates speculative decoding", arXiv 2403.10444.

    The noise must be fresh in each block, even at positions that an earlier block had tested: the
    decision looks at uniforms and tokens beyond the ones that it keeps. A row may stop drafting
    early (-1), provided that the choice to stop depends on tokens that stay in the block.

    Args:
        target_logits: Warped logits of the target, one row more than was drafted.
        draft_logits: Warped logits that the draft tokens were sampled from; None if one-hot.
        draft_tokens: Drafted ids; void from the first -1 on, as in :func:`verify_tokens`.
        accept_uniforms: Noise of the tests, in [0, 1).
        emit_uniforms: Noise of the next token, one for each place where the block may end.

    Returns:
        The verdict; computed in float32, or float64 where logits are.

    Raises:
        ValueError: If the shapes do not belong together; different vocabularies among them.
    """
    block = _drafted(target_logits, draft_logits, draft_tokens)
    return _block_rule(block, accept_uniforms, emit_uniforms)


def verify_greedy(
    target_logits: Float[Tensor, "batch places vocab"],
    draft_tokens: Int64[Tensor, "batch places-1"],
) -> Verdict:
    """Accept drafted tokens while they are the target's most likely ones (ties: the lowest id).

    Source: Leviathan et al., arXiv 2211.17192, at temperature 0, where p and q are one-hot.

    Args:
        target_logits: Logits of the target, one row more than was drafted.
        draft_tokens: Drafted ids; -1 where nothing was drafted.

    Raises:
        ValueError: If the shapes do not belong together.
    """
    _check_shapes(target_logits, None, draft_tokens)
    highest, best = target_logits.max(-1)
    best = torch.where(highest.isfinite(), best, -1)
    agrees = (best[:, :-1] == draft_tokens) & (draft_tokens >= 0)
    num_accepted = agrees.cumprod(-1).sum(-1)
    next_tokens = best.gather(1, num_accepted.unsqueeze(1)).squeeze(1)
    return Verdict(num_accepted, next_tokens, agrees.to(_wide(target_logits)))


def verify_coupled(
    target_logits: Float[Tensor, "batch places vocab"],
    draft_tokens: Int64[Tensor, "batch places-1"],
    *,
    gumbel: Float[Tensor, "batch places vocab"],
) -> Verdict:
    r"""Accept drafted tokens while they are the ones that plain sampling would have drawn.

    Plain sampling takes :math:`\arg\max_v \log p(v) + G(v)` with noise G that belongs to the
    token's own position, see :func:`selftrain.ops.gumbel`; so does the draft with its q and the
    same G. The output is then plain sampling's, token for token, whatever the draft is. A drafted
    token stands with probability :math:`\sum_i 1 / \sum_j \max(p_j/p_i, q_j/q_i)`, at least
    :math:`(1 - TV)/(1 + TV)` where the other rules reach :math:`1 - TV`.
    Source: Daliri, Musco and Suresh, "Coupling without communication", arXiv 2408.07978.

    Args:
        target_logits: Warped logits of the target, one row more than was drafted.
        draft_tokens: Drafted ids; -1 where nothing was drafted.
        gumbel: The noise of each place's position.

    Raises:
        ValueError: If the shapes do not belong together.
    """
    if gumbel.shape != target_logits.shape:
        raise ValueError(
            f"gumbel has shape {tuple(gumbel.shape)}, target_logits "
            f"{tuple(target_logits.shape)}; they must be equal."
        )
    return verify_greedy(target_logits.to(_wide(target_logits)) + gumbel, draft_tokens)


def residual(
    target_logits: Float[Tensor, "*batch vocab"],
    draft_logits: Float[Tensor, "*batch vocab"],
    *,
    scale: Float[Tensor, "*batch"] | float = 1.0,
) -> Float[Tensor, "*batch vocab"]:
    r"""Return the law of the token after a rejection, :math:`\max(0, c p - q)` normalised.

    Where nothing is left, since p and q are equal up to rounding, it is p: a test may have refused
    by rounding too.

    Args:
        target_logits: Warped logits of p.
        draft_logits: Warped logits of q.
        scale: The factor c in (0, 1]: 1 after the test of a token, :math:`\pi_i` after that of a
            prefix (:func:`verify_block`).

    Raises:
        ValueError: If the shapes differ.

    Example:
        >>> p, q = torch.tensor([0.5, 0.3, 0.2]), torch.tensor([0.2, 0.6, 0.2])
        >>> residual(p.log(), q.log())
        tensor([1., 0., 0.])
    """
    if target_logits.shape != draft_logits.shape:
        raise ValueError(
            f"target_logits has shape {tuple(target_logits.shape)}, draft_logits "
            f"{tuple(draft_logits.shape)}; they must be equal."
        )
    p, q = _softmax(target_logits), _softmax(draft_logits)
    scale = torch.as_tensor(scale, dtype=p.dtype, device=p.device).unsqueeze(-1)
    weights = _excess(p, q, scale)
    mass = weights.sum(-1, keepdim=True)
    return torch.where(mass > 0, weights / mass, p)


class _Drafted(NamedTuple):
    """The laws of a block and what they say of its drafted tokens."""

    p: Tensor
    """Target's law ``[B, K + 1, V]``."""
    q: Tensor | None
    """Draft's law ``[B, K, V]``; None if one-hot."""
    tokens: Tensor
    """Drafted ids ``[B, K]``, void ones 0."""
    p_token: Tensor
    """Target's probability of each ``[B, K]``."""
    ratio: Tensor
    """p / q of each, float64 ``[B, K]``; 0 in void slots."""
    void: Tensor
    """Which slots hold no draft: all from a row's first void one on ``[B, K]``."""
    num_drafted: Tensor
    """How many do ``[B]``."""


def _drafted(target_logits: Tensor, draft_logits: Tensor | None, draft_tokens: Tensor) -> _Drafted:
    _check_shapes(target_logits, draft_logits, draft_tokens)
    p = _softmax(target_logits)
    q = None if draft_logits is None else _softmax(draft_logits)
    tokens = draft_tokens.clamp(min=0)
    index = tokens.unsqueeze(-1)
    p_token = p[:, :-1].gather(-1, index).squeeze(-1)
    ratio = p_token.double()
    if q is not None:
        ratio = ratio / q.gather(-1, index).squeeze(-1)
    # A token of no mass under q (ratio inf or NaN) was not drawn from q. To stop before it is
    # right whatever it came from; to accept it would not be.
    places = ((draft_tokens >= 0) & (ratio < torch.inf)).cumprod(-1)
    void = places == 0
    return _Drafted(p, q, tokens, p_token, ratio.masked_fill(void, 0), void, places.sum(-1))


def _token_rule(block: _Drafted, accept_uniforms: Tensor, emit_uniforms: Tensor) -> Verdict:
    # Strict, and u may be 0: a token that the target never samples cannot stand.
    num_accepted = (accept_uniforms < block.ratio).cumprod(-1).sum(-1)
    return _verdict(block, num_accepted, emit_uniforms)


def _block_rule(
    block: _Drafted, accept_uniforms: Tensor, emit_uniforms: Tensor, *, draft_share: float = 0.0
) -> Verdict:
    """Verify by prefixes; with a share w, against the law (1 - w) p + w q that ``ratio`` is of."""
    # A walk of log ratios with a ceiling at 0 is the free walk less its running maximum.
    walk = torch.nn.functional.pad(block.ratio.log().cumsum(-1), (1, 0))
    pi = (walk - walk.cummax(-1).values).exp()
    scale, rest = pi, None
    if draft_share:  # pi ((1 - w) p + w q) - q = rest (scale p - q)
        rest = 1 - draft_share * pi
        scale = (1 - draft_share) * pi / rest.clamp(min=torch.finfo(rest.dtype).tiny)
    mass = _residual_mass(block, scale[:, 1:-1])
    if rest is not None:
        mass = mass * rest[:, 1:-1]
    # Where no draft follows, q is 0 and S_i = pi_i; this makes h_i = pi_i.
    mass = torch.where(block.void[:, 1:], pi[:, 1:-1], mass)
    mass = torch.cat([mass, pi[:, -1:]], -1)[:, : block.void.shape[1]]
    # u < h without its division: at 0/0, certain so far and p = q next, any h would do, since the
    # residual that it leads to has no mass. In general an error in h_i counts by S_i, so rounding
    # in 1 - pi does no harm.
    stands = accept_uniforms * (mass + (1 - pi[:, 1:])) < mass
    num_accepted = stands.flip(-1).cummax(-1).values.sum(-1)
    return _verdict(block, num_accepted, emit_uniforms, scale)


def _residual_mass(block: _Drafted, scale: Tensor) -> Tensor:
    """Return sum_v max(0, scale_i p_{i+1} - q_{i+1}) for the prefixes of 1 to K - 1 tokens."""
    if block.q is None:  # one-hot: only the drafted token leaves the residual
        return scale * (1 - block.p_token[:, 1:].double())
    p, q = block.p[:, 1:-1], block.q[:, 1:]
    return (p * scale.unsqueeze(-1).to(p.dtype)).sub_(q).clamp_(min=0).sum(-1)


def _verdict(
    block: _Drafted, num_accepted: Tensor, emit_uniforms: Tensor, scale: Tensor | None = None
) -> Verdict:
    """Sample the next token, after ``num_accepted`` tokens that stand."""
    num_drafted = block.void.shape[1]
    p = _rows(block.p, num_accepted)
    weights = None
    if num_drafted:
        slot = num_accepted.clamp(max=num_drafted - 1)
        if block.q is None:
            weights = p.scatter(1, block.tokens.gather(1, slot.unsqueeze(1)), 0.0)
        else:
            factor = None if scale is None else scale.gather(1, num_accepted.unsqueeze(1))
            weights = _excess(p, _rows(block.q, slot), factor)
    next_tokens = _emit(block, num_accepted, emit_uniforms, p, weights)
    return Verdict(num_accepted, next_tokens, _overlap(block))


def _emit(
    block: _Drafted, num_accepted: Tensor, emit_uniforms: Tensor, p: Tensor, weights: Tensor | None
) -> Tensor:
    """Sample from ``weights`` where a drafted token fell, else from the target's ``p``."""
    place = num_accepted.unsqueeze(1)
    law = p
    if weights is not None:
        # p and q equal up to rounding leave no residual, though rounding may also have refused.
        left = weights.sum(-1, keepdim=True) > 0
        law = torch.where(left & (place < block.num_drafted.unsqueeze(1)), weights, p)
    next_tokens = inverse_cdf(law, emit_uniforms.gather(1, place).squeeze(1))
    return next_tokens.masked_fill(p[:, 0].isnan(), -1)


def _rows(laws: Tensor, place: Tensor) -> Tensor:
    """Return each sequence's law at its own place (as whole rows: gather moves single numbers)."""
    num_rows, num_places, _ = laws.shape
    first = torch.arange(0, num_rows * num_places, num_places, device=laws.device)
    return laws.flatten(0, 1).index_select(0, first + place)


def _overlap(block: _Drafted) -> Tensor:
    shared = block.p_token
    if block.q is not None:
        shared = torch.minimum(block.p[:, :-1], block.q).sum(-1)
    return shared.masked_fill(block.void, 0)


def _excess(p: Tensor, q: Tensor, scale: Tensor | None) -> Tensor:
    """Return max(0, scale p - q)."""
    # The difference of two floats within a factor of two is exact, so no accuracy is lost beyond
    # what p and q have: logarithms would not help. An error of relative size e in them shifts the
    # law of the output by e too, not by e over the residual's mass, as the residual is reached
    # with a probability that is its mass.
    return (p if scale is None else p * scale.to(p.dtype)).sub(q).clamp_(min=0)


def _wide(logits: Tensor) -> torch.dtype:
    return torch.float64 if logits.dtype == torch.float64 else torch.float32


def _softmax(logits: Tensor) -> Tensor:
    return torch.softmax(logits, dim=-1, dtype=_wide(logits))


def _check_shapes(target_logits: Tensor, draft_logits: Tensor | None, draft_tokens: Tensor) -> None:
    num_rows, num_places, vocab = target_logits.shape
    if tuple(draft_tokens.shape) != (num_rows, num_places - 1):
        raise ValueError(
            f"target_logits has shape {tuple(target_logits.shape)}, so draft_tokens must be "
            f"{(num_rows, num_places - 1)}, one place less; got {tuple(draft_tokens.shape)}."
        )
    if draft_logits is None:
        return
    if draft_logits.shape[-1] != vocab:
        small = min(vocab, draft_logits.shape[-1])
        raise ValueError(
            f"the target has {vocab} logits, the draft {draft_logits.shape[-1]}; verification "
            "compares them token by token. If the difference is padding, pad the draft's with "
            f"-inf or cut it: draft_logits[..., :{small}]."
        )
    if draft_logits.shape[:-1] != draft_tokens.shape:
        raise ValueError(
            f"draft_logits has shape {tuple(draft_logits.shape)}; one row for each of "
            f"draft_tokens is needed: {(*draft_tokens.shape, vocab)}."
        )
