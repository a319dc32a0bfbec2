"""Verification of several drafts at once: alternatives at every place, arranged as a tree.

The tree is static and given by ``parents``: drafted node ``j`` continues node ``parents[j] < j``,
or the committed text where that is -1. Siblings are tested in the order of their indices, and the
first that stands is descended to. Where none stands, the next token comes from what is left of the
target's law. A tree without branches is verified as :func:`selftrain.ops.verify_tokens` does it.

Legend: ``B`` batch, ``N`` drafted nodes, ``D`` depth of the tree, ``V`` vocabulary.
"""

from collections.abc import Iterator, Sequence
from typing import Literal, NamedTuple

import torch
from jaxtyping import Bool, Float, Float64, Int64
from torch import Tensor

from selftrain._core.checks import check_choice
from selftrain.ops.warp import inverse_cdf

Sampling = Literal["without_replacement", "independent", "top_k"]
"""How siblings were chosen from their parent's law."""


class TreeVerdict(NamedTuple):
    """The outcome of one tree for every row."""

    path: Int64[Tensor, "batch depth"]
    """The nodes that stand, from the root's child down; -1 after the last."""
    num_accepted: Int64[Tensor, " batch"]
    """How many nodes stand, in [0, D]."""
    next_tokens: Int64[Tensor, " batch"]
    """The token after them; -1 where its logits are no law."""
    tested: Bool[Tensor, "batch nodes"]
    """Which nodes were tested: the path, and the siblings that fell beside it."""
    overlap: Float[Tensor, "batch nodes"]
    """The probability that a tested node stood, given what fell before it; 0 where not tested."""


def node_depths(parents: Sequence[int]) -> tuple[int, ...]:
    """Return every node's depth: 1 for a child of the root.

    Raises:
        ValueError: If a parent does not come before its child.
    """
    depths: list[int] = []
    for node, parent in enumerate(parents):
        if not -1 <= parent < node:
            raise ValueError(
                f"parents[{node}] is {parent}; a parent comes before its child, and -1 is the root."
            )
        depths.append(1 if parent < 0 else depths[parent] + 1)
    return tuple(depths)


def inner_nodes(parents: Sequence[int]) -> tuple[int, ...]:
    """Return the nodes that have children, in order; the root, if it has any, as -1."""
    return tuple(sorted(set(parents)))


def ancestor_mask(parents: Sequence[int]) -> Bool[Tensor, "nodes nodes"]:
    """Return for every node (rows) which nodes it continues, itself included."""
    mask = torch.eye(len(parents), dtype=torch.bool)
    for node, parent in enumerate(parents):
        if parent >= 0:
            mask[node] |= mask[parent]
    return mask


def verify_tree(
    target_logits: Float[Tensor, "batch places vocab"],
    draft_logits: Float[Tensor, "batch inner vocab"] | None,
    tokens: Int64[Tensor, "batch places-1"],
    parents: Sequence[int],
    *,
    accept_uniforms: Float64[Tensor, "batch places-1"],
    emit_uniforms: Float64[Tensor, "batch levels"],
    sampling: Sampling = "without_replacement",
) -> TreeVerdict:
    r"""Walk down a tree of drafted tokens and sample what follows (exact for any draft).

    At a node with the target's law :math:`p`, :math:`r = p`; a child :math:`y` that was drawn from
    :math:`q` stands while :math:`u\, q(y) < r(y)`, else :math:`r \leftarrow \max(0, r - q)`
    normalised and the next child is tested; the law :math:`q` of siblings stays for independent
    draws, loses :math:`y` for draws without replacement, and is one-hot at each of the ``top_k``.
    Source: SpecInfer, arXiv 2305.09781; without replacement: Sequoia, arXiv 2402.12374; see also
    SpecTr, arXiv 2310.15141. The output law is the target's in all three cases.

    Args:
        target_logits: Warped logits of the target: after the committed text, then after each node.
        draft_logits: Warped logits that the children of each of :func:`inner_nodes` were drawn
            from; None if they were determined.
        tokens: The nodes' ids. -1 is void: the node is passed over, and so is what continues it.
        parents: The tree.
        accept_uniforms: Noise of each node's test, in [0, 1).
        emit_uniforms: Noise of the next token, one for each depth, 0 to D, at which the
            walk may end.
        sampling: How siblings were chosen; "top_k" if and only if there are no ``draft_logits``.

    Returns:
        The verdict; computed in float32, or float64 where logits are.

    Raises:
        ValueError: If ``parents``, ``draft_logits`` and ``sampling`` do not fit one another.
    """
    walk = _Walk(tokens, parents)
    _check_siblings(draft_logits, parents, sampling)
    residual = _law(target_logits[:, 0])
    overlap = residual.new_zeros(tokens.shape)
    for _ in walk.levels():
        q = None if draft_logits is None else _law(walk.siblings_of(draft_logits))
        # The residual is not normalised: its total is kept beside it.
        left = _Left(residual, residual.new_ones(len(tokens), 1), q)
        for child in walk.children():
            trial = left.test(child.token, accept_uniforms.gather(1, child.node), sampling)
            tested = child.drafted & trial.possible
            walk.settle(child, tested, trial.stands)
            overlap.scatter_add_(1, child.node, trial.overlap * tested)
            left = left.where(tested & ~trial.stands, trial.left)
        residual = left.residual
        descended = walk.descend()
        residual = torch.where(descended, _law(walk.at(target_logits)), residual)
    emitted = emit_uniforms.gather(1, walk.num_accepted.unsqueeze(1)).squeeze(1)
    next_tokens = inverse_cdf(residual, emitted).masked_fill(residual[:, 0].isnan(), -1)
    return walk.verdict(next_tokens, overlap)


def verify_tree_greedy(
    target_logits: Float[Tensor, "batch places vocab"],
    tokens: Int64[Tensor, "batch places-1"],
    parents: Sequence[int],
) -> TreeVerdict:
    """Walk down a tree along the target's most likely tokens (ties: the lowest id).

    Args:
        target_logits: Logits of the target: after the committed text, then after each node.
        tokens: The nodes' ids; -1 is void.
        parents: The tree.

    Raises:
        ValueError: If a parent does not come before its child.
    """
    walk = _Walk(tokens, parents)
    highest, best = target_logits.max(-1)
    best = torch.where(highest.isfinite(), best, -1)
    overlap = torch.zeros(tokens.shape, device=tokens.device)
    for _ in walk.levels():
        wanted = walk.at(best).unsqueeze(1)
        for child in walk.children():
            agrees = child.token == wanted
            walk.settle(child, child.drafted, agrees)
            overlap.scatter_add_(1, child.node, (agrees & child.drafted).to(overlap.dtype))
        walk.descend()
    return walk.verdict(walk.at(best), overlap)


class _Child(NamedTuple):
    """The next sibling to be tested in every row; all ``[batch, 1]``."""

    node: Tensor  # 0 where there is none
    token: Tensor
    drafted: Tensor  # False where there is none, it is void, or a sibling stands already


class _Walk:
    """How far down the tree each row has come."""

    def __init__(self, tokens: Tensor, parents: Sequence[int]) -> None:
        depths = (0, *node_depths(parents))
        children: list[list[int]] = [[] for _ in depths]
        for node, parent in enumerate(parents):
            children[parent + 1].append(node)
        self._widths = [
            max(len(c) for c, d in zip(children, depths, strict=True) if d == depth)
            for depth in range(max(depths))
        ]
        widest, inner = max(map(len, children)), inner_nodes(parents)
        laws = [inner.index(node) if node in inner else 0 for node in range(-1, len(parents))]
        device = tokens.device
        self._children = torch.tensor(
            [[*c, *[-1] * (widest - len(c))] for c in children], device=device
        )
        self._laws = torch.tensor(laws, device=device)
        self._tokens, self._rows = tokens, torch.arange(len(tokens), device=device)
        self._place = torch.zeros_like(self._rows)  # 0 is the root, j + 1 node j
        self._going = torch.ones_like(self._rows, dtype=torch.bool).unsqueeze(1)
        self._next = torch.full_like(self._rows, -1).unsqueeze(1)
        self._tested = torch.zeros_like(tokens)
        self._path = torch.full_like(tokens[:, :1], -1).repeat(1, max(depths))
        self._depth = 0

    @property
    def num_accepted(self) -> Tensor:
        return (self._path >= 0).sum(1)

    def levels(self) -> Iterator[int]:
        for depth in range(len(self._widths)):
            self._depth = depth
            yield depth

    def at(self, values: Tensor) -> Tensor:
        """Return each row's entry of ``[batch, places, ...]`` where its walk has come to."""
        return values[self._rows, self._place]

    def siblings_of(self, draft_logits: Tensor) -> Tensor:
        """Return the logits that the children of each row's place were drawn from."""
        return draft_logits[self._rows, self._laws[self._place]]

    def children(self) -> Iterator[_Child]:
        """Iterate over the children of each row's place, in order."""
        for rank in range(self._widths[self._depth]):
            node = self._children[self._place, rank].unsqueeze(1)
            token = self._tokens.gather(1, node.clamp(min=0))
            drafted = self._going & (self._next < 0) & (node >= 0) & (token >= 0)
            yield _Child(node.clamp(min=0), token.clamp(min=0), drafted)

    def settle(self, child: _Child, tested: Tensor, stands: Tensor) -> None:
        self._tested.scatter_add_(1, child.node, tested.long())
        self._next = torch.where(tested & stands, child.node, self._next)

    def descend(self) -> Tensor:
        """Go down to the child that stands; return which rows do ``[batch, 1]``."""
        self._path[:, self._depth] = self._next.squeeze(1)
        self._going = self._next >= 0
        self._place = torch.where(self._going, self._next + 1, self._place.unsqueeze(1)).squeeze(1)
        self._next = torch.full_like(self._next, -1)
        return self._going

    def verdict(self, next_tokens: Tensor, overlap: Tensor) -> TreeVerdict:
        return TreeVerdict(self._path, self.num_accepted, next_tokens, self._tested > 0, overlap)


class _Trial(NamedTuple):
    """The test of one child; tensors ``[batch, 1]``."""

    possible: Tensor
    stands: Tensor
    overlap: Tensor
    left: "_Left"  # should it fall


class _Left(NamedTuple):
    """What is left of the target's law at a node, and the law of the next sibling."""

    residual: Tensor
    mass: Tensor  # total of the residual; 1 at first, whatever rounding says
    q: Tensor | None  # None: one-hot at whichever token

    def test(self, token: Tensor, noise: Tensor, sampling: Sampling) -> _Trial:
        residual, mass, q = self
        r_token = residual.gather(1, token)
        if q is None:
            after = residual.scatter(1, token, 0.0)
            stands = noise < r_token.double() / mass
            possible, both = torch.ones_like(stands), r_token
        else:
            q_token, scaled = q.gather(1, token), q * mass
            after = (residual - scaled).clamp(min=0)
            both = torch.minimum(residual, scaled).sum(-1, keepdim=True)
            # Strict, and u may be 0: a token that the target never samples can not stand.
            stands = noise < r_token.double() / (q_token * mass)
            # Siblings without replacement can use up their law, and then nothing more is drawn.
            possible = q_token > 0
            if sampling == "without_replacement":
                q = q.scatter(1, token, 0.0)
                q = q / q.sum(-1, keepdim=True).clamp(min=torch.finfo(q.dtype).tiny)
        total = after.sum(-1, keepdim=True)
        # Where nothing is left, rounding alone made the test fail: the law stays as it is.
        kept = _Left(residual, mass, q).where(total > 0, _Left(after, total, q))
        return _Trial(possible, stands, both / mass, kept)

    def where(self, condition: Tensor, other: "_Left") -> "_Left":
        q = self.q
        if q is not None and other.q is not None:
            q = torch.where(condition, other.q, q)
        return _Left(
            torch.where(condition, other.residual, self.residual),
            torch.where(condition, other.mass, self.mass),
            q,
        )


def _law(logits: Tensor) -> Tensor:
    return torch.softmax(logits if logits.dtype == torch.float64 else logits.float(), dim=-1)


def _check_siblings(
    draft_logits: Tensor | None, parents: Sequence[int], sampling: Sampling
) -> None:
    check_choice("sampling", sampling, ("without_replacement", "independent", "top_k"))
    if (sampling == "top_k") != (draft_logits is None):
        raise ValueError(
            f"sampling={sampling!r} {'takes no' if draft_logits is not None else 'needs'} "
            "draft_logits: only 'top_k' children are determined."
        )
    wanted = len(inner_nodes(parents))
    if draft_logits is not None and draft_logits.shape[1] != wanted:
        raise ValueError(
            f"draft_logits has {draft_logits.shape[1]} laws a row; the tree has {wanted} nodes "
            "with children, the root included."
        )
