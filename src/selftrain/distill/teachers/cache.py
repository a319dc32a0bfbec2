"""A teacher's answers on disk, read in every epoch.

Shape letters: N scored tokens, H hidden size, K tokens kept.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from selftrain._core.io import read_json
from selftrain.distill.targets import TopKTargets
from selftrain.distill.teachers._shards import (
    HEAD,
    MANIFEST,
    NAMES,
    VERSION,
    Entry,
    open_shard,
    read_head,
    read_index,
    row_key,
)
from selftrain.training.batch import MicroBatch, TokenRow, predicting_steps
from selftrain.training.targets import HiddenTargets

if TYPE_CHECKING:
    from selftrain.ops.linear_divergence import Head


class CachedTeacher:
    """Reads what :func:`write_teacher_cache` wrote: the teacher itself need not be there any more.

    Rows are found by their token ids, so neither their order nor the batches matter. Shards are
    mapped into memory and only what a batch needs is read. A cache knows fixed text only: with
    ``on_policy_fraction > 0`` the student's samples are not in it.

    Args:
        folder: The cache.

    Raises:
        ValueError: If there is none, it is damaged, or of another version.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        if not (self.folder / MANIFEST).exists():
            raise ValueError(
                f"{self.folder} holds no teacher cache: there is no {MANIFEST}. Write one with "
                "write_teacher_cache."
            )
        self.manifest: dict[str, Any] = read_json(self.folder / MANIFEST)
        """What it holds: its kind, number of tokens kept, type, and the teacher."""
        if self.manifest.get("version") != VERSION:
            raise ValueError(
                f"{self.folder} holds a teacher cache of version {self.manifest.get('version')}; "
                f"version {VERSION} is read here. Write it again."
            )
        self._entries = read_index(self.folder)
        self._files: dict[Path, Any] = {}
        self._heads: dict[torch.device, Head] = {}

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self._entries)

    def targets(self, batch: MicroBatch) -> HiddenTargets | TopKTargets:
        """Return what the cache holds for the scored places.

        Raises:
            ValueError: If a row is not in the cache, with its first tokens.
        """
        is_encoder_decoder = self.manifest["is_encoder_decoder"]
        if batch.is_encoder_decoder != is_encoder_decoder:
            kinds = ("decoder-only", "encoder-decoder")
            raise ValueError(
                f"the cache {self.folder} is of {kinds[is_encoder_decoder]} models, the student is "
                f"{kinds[not is_encoder_decoder]}. Write one with a teacher of its kind."
            )
        parts: list[list[Tensor]] = []
        for i, row in enumerate(batch.token_rows):
            steps = predicting_steps(row, is_encoder_decoder=is_encoder_decoder)
            if steps:
                parts.append(self._read(self._find(row, steps, i), steps))
        device = batch.labels.device
        if parts:
            values = [torch.cat(part).to(device) for part in zip(*parts, strict=True)]
        else:
            values = [tensor.to(device) for tensor in self._nothing()]
        if self.manifest["kind"] == "hidden":
            return HiddenTargets(values[0], self._head(device))
        return TopKTargets(values[0].long(), values[1])

    def _find(self, row: TokenRow, steps: Sequence[int], index: int) -> Entry:
        key = row_key(row, is_encoder_decoder=self.manifest["is_encoder_decoder"])
        entry = self._entries.get(key)
        if entry is not None and entry.covers(steps[0], steps[-1]):
            return entry
        ids = [*row.prompt_ids, *row.completion_ids]
        start = " ".join(map(str, ids[:8])) + (" ..." if len(ids) > 8 else "")
        name = f"row {index} of the batch ({len(ids)} tokens: {start})"
        if entry is not None:
            raise ValueError(
                f"{name} is in the teacher cache {self.folder}, but with a longer prompt: its "
                "first scored tokens are missing. Add it with write_teacher_cache as it is now."
            )
        raise ValueError(
            f"{name} is not among the {len(self)} rows of the teacher cache {self.folder}. Add it "
            "with write_teacher_cache, which continues a cache; text that the student samples "
            "cannot be cached (set on_policy_fraction=0), and another tokenizer, prompt template "
            "or max_prompt_tokens makes other rows."
        )

    def _read(self, entry: Entry, steps: Sequence[int]) -> list[Tensor]:
        file = self._open(entry.path)
        first, last = steps[0] - entry.start, steps[-1] - entry.start
        begin, end = entry.offset + first, entry.offset + last + 1
        values = [file.get_slice(name)[begin:end] for name in NAMES[self.manifest["kind"]]]
        if last - first + 1 == len(steps):
            return values
        chosen = torch.tensor(steps) - steps[0]  # a mask leaves steps out
        return [value[chosen] for value in values]

    def _nothing(self) -> list[Tensor]:
        """Return tensors of no rows, of the right widths and types."""
        if not self._entries:
            raise ValueError(f"the teacher cache {self.folder} is empty.")
        file = self._open(next(iter(self._entries.values())).path)
        return [file.get_slice(name)[:0] for name in NAMES[self.manifest["kind"]]]

    def _open(self, path: Path) -> Any:
        if path not in self._files:
            self._files[path] = open_shard(path)
        return self._files[path]

    def _head(self, device: torch.device) -> "Head":
        if device not in self._heads:
            if not (self.folder / HEAD).exists():
                raise ValueError(
                    f"the teacher cache {self.folder} lacks its {HEAD}. Call write_teacher_cache "
                    "again with the same arguments."
                )
            head = read_head(self.folder)
            bias = None if head.bias is None else head.bias.to(device)
            self._heads[device] = replace(head, weight=head.weight.to(device), bias=bias)
        return self._heads[device]
