"""Speculative verification: which drafted tokens stand, and what follows them.

Legend: ``B`` batch, ``K`` drafted tokens, ``V`` vocabulary. Laws are those after warping: the
target's ``p`` must be what plain decoding samples from, the draft's ``q`` what the draft tokens
were really sampled from. The output law is then ``p`` exactly, whatever ``q`` is.
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
    """The token after them: from the residual law after a rejection, else from the target."""
    overlap: Float[Tensor, "batch drafted"]
    """Sum over v of min(p, q) at each drafted position: the probability of acceptance there."""


def verify_tokens(
    target_logits: Float[Tensor, "batch places vocab"],
    draft_logits: Float[Tensor, "batch places-1 vocab"],
    draft_tokens: Int64[Tensor, "batch places-1"],
    *,
    accept_uniforms: Float64[Tensor, "batch places-1"],
    emit_uniforms: Float64[Tensor, "batch places"],
) -> Verdict:
    r"""Accept drafted tokens one by one and sample what follows (exact for any draft).

    Token :math:`y_i` stands while :math:`u_i q_i(y_i) < p_i(y_i)`; at the first that falls the next
    token comes from :math:`\max(0, p_i - q_i)` normalised; if all stand, from :math:`p_{K+1}`.
    Source: Leviathan et al., arXiv 2211.17192, algorithm 1; Chen et al., arXiv 2302.01318.

    Args:
        target_logits: Warped logits of the target, one row more than was drafted.
        draft_logits: Warped logits that the draft tokens were sampled from.
        draft_tokens: Drafted ids; -1 where a row drafted less than the others. Everything from
            the first -1 on is void: the next token there comes from the target itself.
        accept_uniforms: Noise of the accept tests, in [0, 1).
        emit_uniforms: Noise of the next token, one for each place where the block may end.

    Returns:
        The verdict; computed in float32, or float64 if both logits are. NaN logits are not
        detected here.
    """
    p = torch.softmax(target_logits, dim=-1)
    q = torch.softmax(draft_logits, dim=-1)
    drafted = draft_tokens >= 0
    q = q * drafted.unsqueeze(-1)  # nothing was proposed in a void slot: its residual is p
    token = draft_tokens.clamp(min=0).unsqueeze(-1)
    p_token = p[:, :-1].gather(-1, token).squeeze(-1)
    q_token = q.gather(-1, token).squeeze(-1)
    # Strict, and u may be 0: a token that the target never samples can not stand.
    stands = (accept_uniforms * q_token < p_token) & drafted
    num_accepted = stands.long().cumprod(-1).sum(-1)

    row = num_accepted.view(-1, 1, 1).expand(-1, 1, p.shape[-1])
    p_next = p.gather(1, row).squeeze(1)
    q_next = torch.nn.functional.pad(q, (0, 0, 0, 1)).gather(1, row).squeeze(1)
    residual = (p_next - q_next).clamp(min=0)
    # p and q equal up to rounding leave no residual, though rounding may also have refused.
    empty = residual.sum(-1, keepdim=True) == 0
    noise = emit_uniforms.gather(1, num_accepted.unsqueeze(1)).squeeze(1)
    next_tokens = inverse_cdf(torch.where(empty, p_next, residual), noise)
    return Verdict(num_accepted, next_tokens, torch.minimum(p[:, :-1], q).sum(-1))


def verify_greedy(
    target_logits: Float[Tensor, "batch places vocab"],
    draft_tokens: Int64[Tensor, "batch places-1"],
) -> Verdict:
    """Accept drafted tokens while they are the target's most likely ones (ties: the lowest id).

    Source: Leviathan et al., arXiv 2211.17192, at temperature 0, where p and q are one-hot.

    Args:
        target_logits: Logits of the target, one row more than was drafted.
        draft_tokens: Drafted ids; -1 where nothing was drafted.
    """
    best = target_logits.argmax(-1)
    agrees = best[:, :-1] == draft_tokens
    num_accepted = agrees.long().cumprod(-1).sum(-1)
    next_tokens = best.gather(1, num_accepted.unsqueeze(1)).squeeze(1)
    return Verdict(num_accepted, next_tokens, agrees.to(target_logits.dtype))
