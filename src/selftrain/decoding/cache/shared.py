"""Lanes that share prompts: keys and values are stored once, however many rows follow."""

import inspect
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from transformers.cache_utils import Cache

from selftrain.decoding.cache.stretches import Branch, Now, Step, Stretch, StretchLayer

# So many bytes of a layer must a step be spared, for a branch to be worth products of its own; a
# lesser one is copied to its rows.
WORTH_SHARING = 2**20
_READ_TOKENS = 2**14  # of prompts that are read at once, the trunk counted for each: it is repeated
_FIRST_ROOM = 32  # own tokens of each row, to begin with; doubled when they are used up


class SharedLanes:
    """Lanes for models of plain attention, over a trunk, branches and own tokens.

    During a forward the model's configuration names our attention, and only then.

    Args:
        model: A model for which :func:`sharing_obstacle` returns None.
        trunk: Tokens with which all prompts begin. They are read and stored once.
        capacity: Most tokens that a row can hold.
        worth_sharing: How many bytes of a layer a step must be spared for a branch to be shared.
    """

    refills = True

    def __init__(
        self,
        model: nn.Module,
        *,
        trunk: Sequence[int],
        capacity: int,
        worth_sharing: int | None = None,
    ) -> None:
        self.model, self._limit = model, capacity - len(trunk)
        self._worth = WORTH_SHARING if worth_sharing is None else worth_sharing
        self._config = model.config.get_text_config(decoder=True)  # pyrefly: ignore
        self._device: torch.device = next(model.parameters()).device
        self._dtype = next(model.parameters()).dtype
        self._now = Now()
        self._layers = [StretchLayer(self._now) for _ in range(self._config.num_hidden_layers)]
        self._cache = Cache(layers=list(self._layers))
        parameters = inspect.signature(model.forward).parameters
        self._keep = {"logits_to_keep": 1} if "logits_to_keep" in parameters else {}
        self._branches: list[Branch] = []
        self._lengths: list[int] = []  # own tokens of each row
        self._room = 0
        self._trunk = len(trunk)
        if trunk:
            (stretches,) = self._read([trunk], start=0)
            for layer, stretch in zip(self._layers, stretches, strict=True):
                layer.trunk = stretch

    @property
    def num_bytes(self) -> int:
        """The memory of the keys and values of trunk, of the rows' branches and of own tokens."""
        held = [stretch for layer in self._layers for stretch in (layer.trunk, layer.own)]
        held += [stretch for branch in set(self._branches) for stretch in branch.layers]
        return sum(x.numel() * x.element_size() for stretch in held for x in stretch)

    def read(self, prompts: Sequence[Sequence[int]], *, num_rows: int) -> list[Branch]:
        """Read prompts; see :meth:`Lanes.read`."""
        rests = [p[self._trunk :] for p in prompts]
        at_once = max(1, _READ_TOKENS // (self._trunk + max(map(len, rests)) + 1))
        found: list[Branch] = []
        for first in range(0, len(rests), at_once):
            part = rests[first : first + at_once]
            for rest, layers in zip(part, self._read(part, start=self._trunk), strict=True):
                size = sum(x.numel() * x.element_size() for x in layers[0]) if rest else 0
                shared = (num_rows - 1) * size >= self._worth
                found.append(Branch(len(rest), layers if rest else (), shared))
        return found

    def together(self, first: Branch, second: Branch) -> bool:
        """Return True; see :meth:`Lanes.together`."""
        return True

    def open(self, contexts: Sequence[Branch]) -> None:
        """Begin a batch; see :meth:`Lanes.open`."""
        for layer in self._layers:
            layer.own = ()
        self._branches, self._lengths = list(contexts), [0] * len(contexts)
        self.replace(range(len(contexts)), contexts)

    def replace(self, lanes: Sequence[int], contexts: Sequence[Branch]) -> None:
        """Give lanes to new rows; see :meth:`Lanes.replace`."""
        copies: dict[Branch, list[int]] = {}
        for lane, branch in zip(lanes, contexts, strict=True):
            self._branches[lane] = branch
            self._lengths[lane] = 0 if branch.shared else branch.length
            if branch.layers and not branch.shared:
                copies.setdefault(branch, []).append(lane)
        self._make_room(max((branch.length for branch in copies), default=0) + 1)
        for branch, rows in copies.items():
            index = torch.tensor(rows, device=self._device)
            for layer, stretch in zip(self._layers, branch.layers, strict=True):
                layer.reserve(stretch, len(self._lengths), self._room)
                layer.copy(stretch, index)
        self._arrange()

    def select(self, lanes: Sequence[int]) -> None:
        """Keep lanes; see :meth:`Lanes.select`."""
        extent, kept = max(self._lengths), torch.tensor(lanes, device=self._device)
        for layer in self._layers:
            layer.select(kept, extent)
        self._branches = [self._branches[lane] for lane in lanes]
        self._lengths = [self._lengths[lane] for lane in lanes]
        self._arrange()

    def step(self, tokens: Tensor) -> Tensor:
        """Append a token to every row; see :meth:`Lanes.step`."""
        extent, hidden = max(self._lengths) + 1, None
        if min(self._lengths) + 1 < extent:
            later = torch.arange(extent, device=self._device) > self._slots.unsqueeze(1)
            hidden = torch.zeros(later.shape, dtype=self._dtype, device=self._device)
            hidden = hidden.masked_fill_(later, -torch.inf).unsqueeze(1)
        self._make_room(extent)
        self._now.step = Step(self._slots, extent, hidden, self._groups, self._room)
        logits = self._forward(tokens.unsqueeze(1), (self._starts + self._slots).unsqueeze(1))
        self._lengths = [length + 1 for length in self._lengths]
        self._slots = self._slots + 1
        return logits[:, -1]

    def _make_room(self, extent: int) -> None:
        """See that there are so many own slots: more than that, so as not to be asked often."""
        if extent > self._room:
            self._room = min(max(extent, 2 * self._room, _FIRST_ROOM), max(extent, self._limit))

    def _arrange(self) -> None:
        """Note on the device where the rows stand, and which of them share a branch."""
        rows_of: dict[Branch, list[int]] = {}
        for lane, branch in enumerate(self._branches):
            if branch.layers and branch.shared:
                rows_of.setdefault(branch, []).append(lane)
        everyone = len(self._branches)
        self._groups: list[tuple[Branch, Tensor | slice]] = [
            (b, slice(None) if len(r) == everyone else torch.tensor(r, device=self._device))
            for b, r in rows_of.items()
        ]
        starts = [self._trunk + (b.length if b.shared else 0) for b in self._branches]
        self._starts = torch.tensor(starts, device=self._device)
        self._slots = torch.tensor(self._lengths, device=self._device)

    def _read(self, rests: Sequence[Sequence[int]], *, start: int) -> list[tuple[Stretch, ...]]:
        """Return what each layer stores of ``rests``, which begin at position ``start``."""
        longest = max(map(len, rests))
        if longest == 0:
            return [() for _ in rests]
        self._now.step = None
        rows = [[*rest, *([0] * (longest - len(rest)))] for rest in rests]
        tokens = torch.tensor(rows, device=self._device)
        positions = torch.arange(start, start + longest, device=self._device).expand_as(tokens)
        self._forward(tokens, positions)
        read = [layer.take() for layer in self._layers]
        return [
            tuple((keys[row, :, :length], values[row, :, :length]) for keys, values in read)
            for row, length in enumerate(map(len, rests))
        ]

    def _forward(self, tokens: Tensor, positions: Tensor) -> Tensor:
        with self._now.attention_of(self._config):
            return self.model(
                input_ids=tokens,
                position_ids=positions,
                past_key_values=self._cache,
                use_cache=True,
                **self._keep,
            ).logits
