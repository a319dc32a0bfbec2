"""A model as drafter of trees: several proposals at every place.

Node ``j`` of a tree is stored in slot ``length + j`` of its row, behind the committed tokens, while
its position is ``length - 1 + depth``; it sees the committed tokens, its ancestors and itself.

Legend: ``B`` batch, ``W`` nodes of one level, ``N`` nodes of the tree, ``V`` vocabulary.
"""

from collections.abc import Sequence
from typing import Literal, NamedTuple, Protocol

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from selftrain._core.checks import check_choice, check_int
from selftrain.decoding.cache import SlotCache
from selftrain.decoding.cache.masks import MaskPlan
from selftrain.decoding.drafters.model import ModelDrafter, num_logits
from selftrain.decoding.drafters.protocol import Rows, Setting
from selftrain.decoding.sampler import check_room
from selftrain.nn.modes import training_mode
from selftrain.ops.tree import ancestor_mask


class TreeDraft(NamedTuple):
    """A tree of proposals and the laws that they were drawn from."""

    tokens: Tensor
    """Ids of the nodes ``[batch, nodes]``, level by level; -1 is void."""
    logits: Tensor | None
    """Warped logits of the laws that the children of each inner node were drawn from, the root's
    first ``[batch, inner, vocab]``; None if they were determined."""
    parents: tuple[int, ...]
    """What each node continues; -1 for the committed text."""


class Level(NamedTuple):
    """One level of a tree that is being drawn."""

    depth: int
    """1 for the first."""
    first: int
    """Index of its first node."""
    num_children: int
    """How many each node above it gets."""
    parents: tuple[int, ...]
    """The tree down to the level above."""
    tokens: Tensor
    """The ids of that tree's nodes ``[batch, nodes]``."""


class Choose(Protocol):
    """Draws one level: holds the warping, the noise and the logits processors of a block."""

    def __call__(self, logits: Tensor, level: Level) -> tuple[Tensor, Tensor | None]:
        """Return the level's tokens, and the warped logits of their laws, None if determined.

        Args:
            logits: Raw logits over the target's vocabulary ``[batch, nodes above, vocab]``.
            level: Which level it is.

        Returns:
            Ids ``[batch, nodes above * num_children]``, siblings side by side, -1 where there are
            no more; and logits of the shape of ``logits``.
        """
        ...


class TreeDrafter:
    """Propose a tree of continuations with a model: alternatives at every place.

    The tree's shape is fixed. The target scores all nodes in one forward, each seeing its own
    ancestors only; the path that stands is kept. More proposals stand than in a chain of the same
    depth, and the target works on more tokens for it: of use where it is memory bound.
    Source: SpecInfer, arXiv 2305.09781; Sequoia, arXiv 2402.12374; EAGLE-2, arXiv 2406.16858.

    Args:
        model: A causal model over the target's vocabulary.
        branching: How many children a node has, level by level. ``num_draft_tokens`` of the decoder
            cuts the depth.
        sampling: "top_k" proposes the draft's most likely tokens, "without_replacement" draws them.
            It makes no difference at temperature 0.
        tokenizer: Needed where the models' numbers of logits differ by padding.

    Raises:
        TypeError: If the draft cannot be driven through slots.
        ValueError: If ``branching`` is empty or has a number below 1.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        branching: Sequence[int] = (3, 2, 1),
        *,
        sampling: Literal["top_k", "without_replacement"] = "top_k",
        tokenizer: PreTrainedTokenizerBase | None = None,
    ) -> None:
        check_choice("sampling", sampling, ("top_k", "without_replacement"))
        check_int("len(branching)", len(branching), low=1)
        for depth, width in enumerate(branching):
            check_int(f"branching[{depth}]", width, low=1)
        self._drafter = ModelDrafter(model, tokenizer=tokenizer)
        self.branching: tuple[int, ...] = tuple(branching)
        self.sampling: Literal["top_k", "without_replacement"] = sampling

    @property
    def models(self) -> tuple[nn.Module, ...]:
        """The modules at work, to be put in evaluation mode."""
        return self._drafter.models

    def num_nodes(self, depth: int) -> int:
        """Return the size of the tree cut at ``depth``."""
        return len(tree_parents(self.branching[:depth]))

    def check(self, target: PreTrainedModel) -> None:
        """Raise unless the draft fits the target, and both tell a slot from a position."""
        self._drafter.check(target)
        for role, model in (("target", target), ("draft", self._drafter.model)):
            if not tells_slots_from_positions(model):
                raise TypeError(
                    f"the {role} cannot be used with trees: it takes positions or masks from the "
                    "order in which tokens are stored."
                )
            window = MaskPlan(model).window
            if window is not None and len(self.branching) >= window:
                raise ValueError(
                    f"the tree has {len(self.branching)} levels, and some layers of the {role} see "
                    f"{window} tokens; a tree must be less deep than that."
                )

    def start(self, setting: Setting) -> "TreeSession":
        """Begin one call of ``generate``."""
        model = self._drafter.model
        check_room(setting.prompts, setting.params.max_new_tokens, model, "draft")
        if not isinstance(setting.target, SlotCache):
            raise ValueError("TreeDrafter needs slots; use cache='slots' and a causal target.")
        return TreeSession(
            setting.target,
            SlotCache(model, capacity=setting.capacity),
            self.branching,
            draft_size=num_logits(model),
            vocab_size=setting.vocab_size,
        )


class TreeSession:
    """A draft of trees at work on a batch, and the target's slots, where trees are stored too."""

    def __init__(
        self,
        target: SlotCache,
        cache: SlotCache,
        branching: tuple[int, ...],
        *,
        draft_size: int,
        vocab_size: int,
    ) -> None:
        self.target = target
        self.cache, self.branching = cache, branching
        self.draft_size, self.vocab_size = draft_size, vocab_size
        self._fed: list[int] = []  # committed tokens in the cache, row by row

    def propose(self, rows: Rows, depth: int, choose: Choose) -> TreeDraft:
        """Draw a tree of up to ``depth`` levels, one forward a level."""
        logits = self._catch_up(rows)
        branching = self.branching[:depth]
        tokens, laws = rows.tokens[:, :0], []
        for above, num_children in enumerate(branching):
            parents = tree_parents(branching[:above])
            if above:
                logits = self._feed(rows, tokens, parents, logits.shape[1] * branching[above - 1])
            level = Level(above + 1, len(parents), num_children, parents, tokens)
            drawn, law = choose(logits, level)
            if law is not None:
                laws.append(law)
            tokens = torch.cat([tokens, drawn], dim=1)
        return TreeDraft(tokens, torch.cat(laws, 1) if laws else None, tree_parents(branching))

    def num_nodes(self, depth: int) -> int:
        """Return the size of the tree cut at ``depth``."""
        return len(tree_parents(self.branching[:depth]))

    def select(self, rows: Tensor) -> None:
        """Keep the rows with these indices."""
        self.cache.select(rows)
        if self._fed:
            self._fed = [self._fed[row] for row in rows.tolist()]

    def _catch_up(self, rows: Rows) -> Tensor:
        """Feed what the rows have gained since the last tree, over whatever is left of that."""
        lengths, fed = rows.host_lengths, self._fed or [0] * len(rows.host_lengths)
        missing = max(n - f for n, f in zip(lengths, fed, strict=True))
        back = torch.arange(-missing, 0, device=rows.lengths.device)
        # A short row feeds its first token several times.
        positions = (rows.lengths.unsqueeze(1) + back).clamp(min=0)
        self._fed = list(lengths)
        logits = self.cache.forward(
            self._known(rows.tokens.gather(1, positions)),
            positions,
            extent=rows.extent,
            last_only=True,
        )
        return self._resize(logits)

    def _feed(self, rows: Rows, tokens: Tensor, parents: tuple[int, ...], width: int) -> Tensor:
        """Feed the last ``width`` nodes, one level, and return what follows each."""
        mask = ancestor_mask(parents).to(tokens.device)
        nodes = torch.arange(len(parents) - width, len(parents), device=tokens.device)
        depth = int(mask[-1].sum())
        extent = rows.extent + len(parents)
        positions = torch.minimum(rows.lengths - 1 + depth, rows.last).unsqueeze(1)
        logits = self.cache.forward(
            self._known(tokens[:, -width:]),
            positions.expand(-1, width),
            extent=extent,
            slots=rows.lengths.unsqueeze(1) + nodes,
            visible=visible_slots(rows.lengths, extent, mask[-width:]),
        )
        return self._resize(logits)

    def _known(self, tokens: Tensor) -> Tensor:
        # The target may hold padding ids that the draft has no row for: any row will do there.
        return tokens.clamp(min=0, max=self.draft_size - 1)

    def _resize(self, logits: Tensor) -> Tensor:
        missing = self.vocab_size - logits.shape[-1]
        return logits if missing == 0 else nn.functional.pad(logits, (0, missing), value=-torch.inf)


def tree_parents(branching: Sequence[int]) -> tuple[int, ...]:
    """Return the parents of a tree in which every node of a level has as many children."""
    parents: list[int] = []
    level = [-1]
    for width in branching:
        first = len(parents)
        parents += [node for node in level for _ in range(width)]
        level = list(range(first, len(parents)))
    return tuple(parents)


def visible_slots(lengths: Tensor, extent: int, ancestors: Tensor) -> Tensor:
    """Return which slots some nodes of a tree see ``[batch, some, extent]``.

    Args:
        lengths: Number of committed tokens of each row, the pending one included ``[batch]``.
        extent: How many slots there are.
        ancestors: Which nodes each of them continues, itself included ``[some, nodes]``.
    """
    node = torch.arange(extent, device=lengths.device) - lengths.unsqueeze(1)
    num_nodes = ancestors.shape[1]
    seen = ancestors[:, node.clamp(0, num_nodes - 1)].movedim(1, 0)
    return (node < 0).unsqueeze(1) | (seen & (node < num_nodes).unsqueeze(1))


@torch.no_grad()
def tells_slots_from_positions(model: nn.Module) -> bool:
    """Return whether a second child, stored behind the first, scores as if it were alone."""
    cache = SlotCache(model, capacity=4)
    tokens = torch.tensor([[1, 2, 3, 1]], device=cache.device)
    lengths = torch.tensor([2], device=cache.device)
    half = next(model.parameters()).dtype.itemsize < 4
    with training_mode(False, model):
        want = model(input_ids=tokens[:, [0, 1, 3]], use_cache=False).logits[:, -1].double()
        cache.prefill([[1, 2]])
        children = torch.eye(2, dtype=torch.bool, device=cache.device)
        got = cache.forward(
            tokens[:, 2:],
            torch.full_like(tokens[:, 2:], 2),
            extent=4,
            slots=torch.tensor([[2, 3]], device=cache.device),
            visible=visible_slots(lengths, 4, children),
        )[:, -1].double()
    off = (got - want).abs().max() / want.std().clamp(min=1e-6)
    return bool(off < (0.1 if half else 1e-3))
