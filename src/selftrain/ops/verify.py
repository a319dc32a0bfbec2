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
    block = _Drafted.of(target_logits, draft_logits, draft_tokens)
    # Strict, and u may be 0: a token that the target never samples cannot stand.
    num_accepted = (accept_uniforms < block.ratio).long().cumprod(-1).sum(-1)
    return block.verdict(num_accepted, emit_uniforms)


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
    Given the drafted tokens, at least i stand with probability :math:`\pi_i`: the expected number
    is never less than that of :func:`verify_tokens`, and the same for one token or a one-hot draft.
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
    block = _Drafted.of(target_logits, draft_logits, draft_tokens)
    num_places = target_logits.shape[1]
    # A walk of log ratios with a ceiling at 0 is the free walk less its running maximum.
    walk = torch.nn.functional.pad(block.ratio.log().cumsum(-1), (1, 0))
    pi = (walk - walk.cummax(-1).values).exp()
    mass = block.residual_mass(pi)
    room = 1 - pi[:, 1:-1]
    # 0/0, certain so far and p = q next: any h will do there, since the residual it leads to has
    # no mass. In general an error in h_i counts by S_i, so rounding in 1 - pi does no harm.
    h = torch.where(mass > 0, mass / (mass + room), (room <= 0).to(mass.dtype))
    place = torch.arange(1, num_places, device=h.device)
    last = block.num_drafted.unsqueeze(-1)
    h = torch.where(place == last, pi[:, 1:], torch.nn.functional.pad(h, (0, 1))[:, : len(place)])
    stands = (accept_uniforms < h) & (place <= last)
    num_accepted = torch.nn.functional.pad(stands * place, (1, 0)).amax(-1)
    return block.verdict(num_accepted, emit_uniforms, pi)


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
    num_accepted = agrees.long().cumprod(-1).sum(-1)
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

    Where nothing is left, since p and q are equal up to rounding, it is p.

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
    return weights / weights.sum(-1, keepdim=True)


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
    proposed: Tensor
    """Which are not void ``[B, K]``: all up to a row's last."""
    num_drafted: Tensor
    """How many those are ``[B]``."""

    @classmethod
    def of(
        cls, target_logits: Tensor, draft_logits: Tensor | None, draft_tokens: Tensor
    ) -> "_Drafted":
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
        fit = (draft_tokens >= 0) & (ratio < torch.inf)
        places = fit.long().cumprod(-1)
        proposed = places > 0
        ratio = torch.where(proposed, ratio, 0.0)
        return cls(p, q, tokens, p_token, ratio, proposed, places.sum(-1))

    def residual_mass(self, pi: Tensor) -> Tensor:
        """Return the masses S_1 .. S_{K-1} of block verification, float64 ``[B, K - 1]``."""
        if self.q is None:  # q is one-hot: only the drafted token leaves the residual
            return pi[:, 1:-1] * (1 - self.p_token[:, 1:].double())
        p, q = self.p[:, 1:-1], self.q[:, 1:]
        return (p * pi[:, 1:-1, None].to(p.dtype)).sub_(q).clamp_(min=0).sum(-1).double()

    def verdict(
        self, num_accepted: Tensor, emit_uniforms: Tensor, pi: Tensor | None = None
    ) -> Verdict:
        """Sample the next token, after ``num_accepted`` tokens that stand."""
        num_rows, num_places, _ = self.p.shape
        row = torch.arange(num_rows, device=self.p.device)
        p = self.p.flatten(0, 1).index_select(0, row * num_places + num_accepted)
        weights = p
        if num_places > 1:
            rejected = (num_accepted < self.num_drafted).unsqueeze(-1)
            slot = num_accepted.clamp(max=num_places - 2)
            if self.q is None:
                token = self.tokens.gather(1, slot.unsqueeze(1))
                weights = torch.where(rejected, _unless_empty(p.scatter(1, token, 0.0), p), p)
            else:
                q = self.q.flatten(0, 1).index_select(0, row * (num_places - 1) + slot)
                scale = None if pi is None else pi.gather(1, num_accepted.unsqueeze(1)).to(p.dtype)
                weights = torch.where(rejected, _excess(p, q, scale), p)
        noise = emit_uniforms.gather(1, num_accepted.unsqueeze(1)).squeeze(1)
        next_tokens = inverse_cdf(weights, noise).masked_fill(p[:, 0].isnan(), -1)
        return Verdict(num_accepted, next_tokens, self.overlap())

    def overlap(self) -> Tensor:
        shared = self.p_token
        if self.q is not None:
            shared = torch.minimum(self.p[:, :-1], self.q).sum(-1)
        return torch.where(self.proposed, shared, 0.0)


def _excess(p: Tensor, q: Tensor, scale: Tensor | None) -> Tensor:
    """Return max(0, scale p - q), or p where nothing of it is left."""
    # The difference of two floats within a factor of two is exact, so no accuracy is lost beyond
    # what p and q have: logarithms would not help. An error of relative size e in them shifts the
    # law of the output by e too, not by e over the residual's mass, as the residual is reached
    # with a probability that is its mass.
    return _unless_empty((p if scale is None else p * scale).sub(q).clamp_(min=0), p)


def _unless_empty(weights: Tensor, p: Tensor) -> Tensor:
    """Return p where laws equal up to rounding leave no residual; rounding may have refused too."""
    return torch.where(weights.sum(-1, keepdim=True) > 0, weights, p)


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
