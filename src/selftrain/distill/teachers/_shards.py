"""The files of a teacher cache.

A cache is a folder of shards, each a safetensors file that is whole or absent and holds its own
index: no file is ever changed. A row is found by a hash of its token ids.

Shape letters: M tokens of a shard, R rows of a shard, H hidden size, K tokens kept.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from selftrain._core.io import save_tensors
from selftrain.training.batch import TokenRow

if TYPE_CHECKING:
    from selftrain.ops.linear_divergence import Head

MANIFEST, HEAD, SHARDS = "manifest.json", "head.safetensors", "shard-*.safetensors"
VERSION = 1
NAMES = {"hidden": ("hidden",), "top_k": ("token_ids", "log_probs")}
"""The tensors of a shard by the cache's kind: ``hidden`` is ``[M, H]``, the others ``[M, K]``."""
_KEYS, _STARTS, _OFFSETS = "row_keys", "row_starts", "row_offsets"
_KEY_BYTES = 16  # two of 2^40 rows meet with a probability of 2^-49


@dataclass(frozen=True, slots=True)
class Entry:
    """Where one row's values are."""

    path: Path
    """The shard."""
    offset: int
    """The row's first token in it."""
    start: int
    """The time step that this token is of."""
    length: int
    """How many steps there are."""

    def covers(self, first: int, last: int) -> bool:
        """Return whether the steps from ``first`` to ``last`` are there."""
        return self.start <= first and last < self.start + self.length


def row_key(row: TokenRow, *, is_encoder_decoder: bool) -> bytes:
    """Return the name under which a row is kept.

    A decoder-only model reads prompt and completion as one text, so that their border is no part of
    the name; for an encoder-decoder it is.
    """
    border = [len(row.prompt_ids)] if is_encoder_decoder else [-1]
    ids = np.array([*border, *row.prompt_ids, *row.completion_ids], dtype="<i8")
    return hashlib.blake2b(ids.tobytes(), digest_size=_KEY_BYTES).digest()


def write_shard(
    folder: Path,
    keys: Sequence[bytes],
    starts: Sequence[int],
    values: Sequence[Mapping[str, Tensor]],
) -> Path:
    """Write rows into a new shard, named by what it holds.

    Args:
        folder: The cache.
        keys: Each row's key.
        starts: The time step that each row's values begin at.
        values: Each row's tensors, of consecutive steps.
    """
    lengths = [len(next(iter(tensors.values()))) for tensors in values]
    tensors = {name: torch.cat([row[name] for row in values]) for name in values[0]}
    joined = b"".join(keys)
    tensors[_KEYS] = torch.frombuffer(bytearray(joined), dtype=torch.uint8).view(-1, _KEY_BYTES)
    tensors[_STARTS] = torch.tensor(starts, dtype=torch.long)
    tensors[_OFFSETS] = torch.tensor([0, *lengths]).cumsum(0)
    path = folder / f"shard-{hashlib.blake2b(joined, digest_size=8).hexdigest()}.safetensors"
    save_tensors(path, tensors)
    return path


def read_index(folder: Path) -> dict[bytes, Entry]:
    """Return where each row of a cache is; of a row that is there twice, the longer one.

    Raises:
        ValueError: If a shard is damaged.
    """
    entries: dict[bytes, Entry] = {}
    for path in sorted(folder.glob(SHARDS)):
        file = open_shard(path)
        keys = file.get_tensor(_KEYS).numpy()
        starts = file.get_tensor(_STARTS).tolist()
        offsets = file.get_tensor(_OFFSETS).tolist()
        for i, start in enumerate(starts):
            key = keys[i].tobytes()
            entry = Entry(path, offsets[i], start, offsets[i + 1] - offsets[i])
            if key not in entries or entry.length > entries[key].length:
                entries[key] = entry
    return entries


def open_shard(path: Path) -> Any:
    """Map a shard into memory; raises ``ValueError`` if it is damaged."""
    try:
        return safe_open(str(path), framework="pt")
    except SafetensorError as error:
        raise ValueError(
            f"{path} is damaged ({error}). Delete it and call write_teacher_cache again with the "
            "same arguments: only its rows are computed anew."
        ) from error


def write_head(folder: Path, head: "Head") -> None:
    """Write the output head beside the shards."""
    tensors = {"weight": head.weight} | ({} if head.bias is None else {"bias": head.bias})
    numbers = json.dumps({"scale": head.scale, "softcap": head.softcap})
    save_tensors(folder / HEAD, tensors, metadata={"head": numbers})


def read_head(folder: Path) -> "Head":
    """Read what :func:`write_head` wrote."""
    from selftrain.ops.linear_divergence import Head

    file = open_shard(folder / HEAD)
    tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    numbers = json.loads(file.metadata()["head"])
    return Head(tensors["weight"], tensors.get("bias"), **numbers)
