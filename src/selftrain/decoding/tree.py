"""Blocks whose proposals form a tree: drawn level by level, scored in one forward.

Legend: ``B`` batch, ``W`` nodes of one level, ``N`` nodes of the tree, ``V`` vocabulary.
"""

from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple, Protocol

import torch
from torch import Tensor

from selftrain.decoding.cache import SlotCache
from selftrain.decoding.drafters.protocol import Draft, Rows
from selftrain.decoding.drafters.tree import Level, TreeDraft, TreeSession, visible_slots
from selftrain.decoding.law import warp
from selftrain.decoding.noise import BlockNoise
from selftrain.decoding.params import SamplingParams
from selftrain.decoding.rules import Verifier
from selftrain.ops.tree import (
    TreeVerdict,
    ancestor_mask,
    node_depths,
    verify_tree,
    verify_tree_greedy,
)
from selftrain.ops.warp import inverse_cdf

ProcessNodes = Callable[[Tensor, Tensor, Sequence[Sequence[int]]], Tensor]
"""Applies logits processors to logits ``[batch, places, vocab]``, given the ids of the tree's nodes
``[batch, nodes]`` and, for each place, which nodes stand before it."""


class TreeNoise(NamedTuple):
    """The noise of a tree."""

    nodes: BlockNoise
    """A slot a node, for drawing and testing it."""
    levels: BlockNoise
    """A slot a level: what depends on a token's position."""


class TreeRule(Protocol):
    """Draws the children of all nodes of a level, and judges a tree by the target's logits."""

    def choose(
        self, logits: Tensor, noise: TreeNoise, level: Level
    ) -> tuple[Tensor, Tensor | None]:
        """Draw a level from ``[batch, nodes above, vocab]``; see :class:`drafters.tree.Choose`."""
        ...

    def judge(self, logits: Tensor, draft: TreeDraft, noise: TreeNoise) -> TreeVerdict:
        """Say what stands, from the target's raw logits ``[batch, nodes + 1, vocab]``."""
        ...


class GreedyTreeRule:
    """The draft's most likely tokens; the target takes its own most likely one."""

    def choose(
        self, logits: Tensor, noise: TreeNoise, level: Level
    ) -> tuple[Tensor, Tensor | None]:
        """Return the most likely tokens."""
        return _most_likely(logits, level.num_children), None

    def judge(self, logits: Tensor, draft: TreeDraft, noise: TreeNoise) -> TreeVerdict:
        """Descend where a child is what the target takes."""
        return verify_tree_greedy(logits, draft.tokens, draft.parents)


class SampledTreeRule:
    """Recursive residual verification of the draft's most likely tokens, or of distinct draws."""

    def __init__(
        self, params: SamplingParams, sampling: Literal["top_k", "without_replacement"]
    ) -> None:
        self.params, self.sampling = params, sampling

    def choose(
        self, logits: Tensor, noise: TreeNoise, level: Level
    ) -> tuple[Tensor, Tensor | None]:
        """Draw siblings one after the other from what the law has left, or take the top ones."""
        if self.sampling == "top_k":
            return _most_likely(logits, level.num_children), None
        law = warp(logits, self.params)
        weights = torch.softmax(law, dim=-1)
        end = level.first + logits.shape[1] * level.num_children
        uniforms = noise.nodes.draft[:, level.first : end].unflatten(1, (-1, level.num_children))
        siblings = []
        for rank in range(level.num_children):
            token = inverse_cdf(weights, uniforms[:, :, rank])
            siblings.append(torch.where(weights.sum(-1) > 0, token, -1))
            weights = weights.scatter(-1, token.unsqueeze(-1), 0.0)
        return torch.stack(siblings, dim=-1).flatten(1), law

    def judge(self, logits: Tensor, draft: TreeDraft, noise: TreeNoise) -> TreeVerdict:
        """Test siblings in order, and draw what follows."""
        return verify_tree(
            warp(logits, self.params),
            draft.logits,
            draft.tokens,
            draft.parents,
            accept_uniforms=noise.nodes.accept,
            emit_uniforms=noise.levels.emit,
            sampling=self.sampling,
        )


class CoupledTreeRule:
    """The best guesses of what plain sampling will draw with its noise, which the draft knows."""

    def __init__(self, params: SamplingParams) -> None:
        self.params = params

    def choose(
        self, logits: Tensor, noise: TreeNoise, level: Level
    ) -> tuple[Tensor, Tensor | None]:
        """Return the tokens with the largest logits and noise."""
        law = warp(logits, self.params)
        shared = noise.levels.gumbel(law.shape[-1], law.dtype)
        return _most_likely(law + shared[:, level.depth - 1, None], level.num_children), None

    def judge(self, logits: Tensor, draft: TreeDraft, noise: TreeNoise) -> TreeVerdict:
        """Descend where a child is what plain sampling draws."""
        law = warp(logits, self.params)
        shared = noise.levels.gumbel(law.shape[-1], law.dtype)
        depths = torch.tensor((0, *node_depths(draft.parents)), device=law.device)
        return verify_tree_greedy(law + shared[:, depths], draft.tokens, draft.parents)


def tree_rule_for(
    params: SamplingParams,
    verifier: Verifier | None,
    sampling: Literal["top_k", "without_replacement"],
) -> TreeRule:
    """Return the rule for these parameters; at temperature 0 every verifier is the greedy one."""
    if params.greedy:
        return GreedyTreeRule()
    if verifier == "coupled":
        return CoupledTreeRule(params)
    return SampledTreeRule(params, sampling)


class TreeOutcome(NamedTuple):
    """What a tree has come to."""

    draft: Draft
    """The path that stands, as a chain: -1 after its last token."""
    verdict: TreeVerdict
    num_proposed: Tensor
    """How many nodes were not void ``[batch]``."""


class TreeSteps:
    """A drafter of trees and the rule for them: what a block does from proposing to judging.

    Args:
        session: The drafter at work.
        rule: How tokens are drawn and judged.
    """

    def __init__(self, session: TreeSession, rule: TreeRule) -> None:
        self.session, self.rule = session, rule

    def num_nodes(self, depth: int) -> int:
        """Return the size of the tree cut at ``depth``."""
        return self.session.num_nodes(depth)

    def select(self, rows: Tensor) -> None:
        """Keep the rows with these indices."""
        self.session.select(rows)

    def block(
        self,
        rows: Rows,
        *,
        depth: int,
        noise: BlockNoise,
        process: ProcessNodes | None = None,
    ) -> TreeOutcome:
        """Draw a tree, score and judge it, and leave the path that stands in the target's slots.

        Args:
            rows: The batch.
            depth: How deep to draw, at least 1.
            noise: The noise of the block, with a slot for each node.
            process: Applies logits processors; None if there are none.
        """
        both = TreeNoise(noise, noise.cut(depth + 1))

        def choose(logits: Tensor, level: Level) -> tuple[Tensor, Tensor | None]:
            if process is not None:
                above = node_paths(level.parents)[-logits.shape[1] :]
                logits = process(logits, level.tokens, above)
            return self.rule.choose(logits, both, level)

        draft = self.session.propose(rows, depth, choose)
        depths = torch.tensor((0, *node_depths(draft.parents)), device=rows.tokens.device)
        places, last = rows.lengths.unsqueeze(1) - 1 + depths, rows.last.unsqueeze(1)
        # The token that ends a block has the last place: a node there could only be cut off again.
        tokens = draft.tokens.masked_fill(places[:, 1:] >= last, -1)
        draft = draft._replace(tokens=tokens)
        target = self.session.target
        logits = _score(target, rows, draft, torch.minimum(places, last))
        if process is not None:
            logits = process(logits, tokens, node_paths(draft.parents))
        verdict = self.rule.judge(logits, draft, both)
        path, stands = verdict.path, verdict.path >= 0
        slots = rows.lengths.unsqueeze(1) + torch.arange(path.shape[1], device=path.device)
        target.move(torch.where(stands, rows.lengths.unsqueeze(1) + path, slots), slots)
        chain = tokens.gather(1, path.clamp(min=0)).masked_fill(~stands, -1)
        return TreeOutcome(Draft(chain, None), verdict, (tokens >= 0).sum(1))


def node_paths(parents: Sequence[int]) -> list[tuple[int, ...]]:
    """Return which nodes lead to each place: first the root's, none, then those of the nodes."""
    paths: list[tuple[int, ...]] = [()]
    for node, parent in enumerate(parents):
        paths.append((*paths[parent + 1], node))
    return paths


def _score(target: SlotCache, rows: Rows, draft: TreeDraft, positions: Tensor) -> Tensor:
    """Return the target's logits after the pending token and after each node."""
    device = positions.device
    pending = (rows.lengths - 1).unsqueeze(1)
    num_nodes = len(draft.parents)
    extent = rows.extent + num_nodes
    ancestors = torch.nn.functional.pad(ancestor_mask(draft.parents).to(device), (0, 0, 1, 0))
    return target.forward(
        torch.cat([rows.tokens.gather(1, pending), draft.tokens.clamp(min=0)], dim=1),
        positions,
        extent=extent,
        slots=pending + torch.arange(num_nodes + 1, device=device),
        visible=visible_slots(rows.lengths, extent, ancestors),
    )


def _most_likely(logits: Tensor, count: int) -> Tensor:
    """Return ``count`` tokens for each place, siblings side by side; -1 where there are no more."""
    best = logits.topk(min(count, logits.shape[-1]), dim=-1).indices
    return torch.nn.functional.pad(best, (0, count - best.shape[-1]), value=-1).flatten(1)
