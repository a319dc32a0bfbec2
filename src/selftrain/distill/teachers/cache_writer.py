"""Writing a teacher's answers to fixed text, once.

Shape letters: N scored tokens, H hidden size, K tokens kept.
"""

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from selftrain._core.checks import check_choice, check_int, check_not_empty
from selftrain._core.config import differences
from selftrain._core.io import read_json, write_json
from selftrain._core.logging import progress
from selftrain.distill.targets import Targets, Teacher
from selftrain.distill.teachers._answers import kept_values
from selftrain.distill.teachers._shards import (
    HEAD,
    MANIFEST,
    SHARDS,
    VERSION,
    Entry,
    read_head,
    read_index,
    row_key,
    write_head,
    write_shard,
)
from selftrain.distill.teachers.cache import CachedTeacher
from selftrain.distill.teachers.model import ModelTeacher
from selftrain.errors import RunConflictError
from selftrain.training.batch import TokenRow, collate, predicting_steps
from selftrain.training.finetune import token_row
from selftrain.training.targets import HiddenTargets


def write_teacher_cache(
    teacher: Teacher | nn.Module,
    rows: Sequence[TokenRow | Mapping[str, Any]],
    folder: str | Path,
    *,
    kind: Literal["hidden", "top_k"] = "hidden",
    top_k: int | None = None,
    dtype: torch.dtype | None = None,
    batch_size: int = 8,
    shard_tokens: int = 65536,
    decoder_start_id: int | None = None,
    device: torch.device | str | None = None,
    show_progress: bool = True,
) -> CachedTeacher:
    """Ask a teacher about every completion token of the rows and keep the answers in a folder.

    ``kind="hidden"`` keeps the last hidden states and, once, the head: exact targets over the whole
    vocabulary in H numbers a token (2H bytes in bfloat16). ``kind="top_k"`` keeps the K most likely
    tokens, 8K bytes a token in float32; what they leave is only known in sum.

    Called again after an interruption it continues, and ends with the same files; called with more
    rows it adds them. A row that is there already is not computed again.

    Args:
        teacher: A model, which is put in evaluation mode meanwhile, or anything with ``targets``.
        rows: Token rows, or mappings as for :func:`selftrain.training.finetune`. Completions are
            kept whole, whatever their masks.
        folder: The cache; made if absent.
        kind: What to keep.
        top_k: Tokens kept at a position; only for ``kind="top_k"``.
        dtype: Of the numbers kept; None: the teacher's own for hidden states, float32 for
            log-probabilities, which may be float64 but not less.
        batch_size: Rows asked about together.
        shard_tokens: Tokens a file, and the most work that an interruption can lose.
        decoder_start_id: Of an encoder-decoder that is not given as a model.
        device: Where batches go; None: where the model is, else the CPU.
        show_progress: Whether to show a bar.

    Returns:
        The cache, ready to teach.

    Raises:
        ValueError: If an argument is out of range, no row has a completion, or the teacher cannot
            give what is to be kept.
        RunConflictError: If the folder holds a cache of another teacher or kind.
    """
    _check(kind, top_k, dtype, batch_size, shard_tokens)
    check_not_empty("rows", rows)
    folder = Path(folder)
    model = teacher if isinstance(teacher, nn.Module) else getattr(teacher, "model", None)
    if isinstance(model, nn.Module):
        device = device or next(model.parameters()).device
        config: Any = getattr(model, "config", None)
        if getattr(config, "is_encoder_decoder", False):
            decoder_start_id = config.decoder_start_token_id
    source = ModelTeacher(teacher) if isinstance(teacher, nn.Module) else teacher
    manifest = {
        "version": VERSION,
        "kind": kind,
        "top_k": top_k,
        "dtype": None if dtype is None else str(dtype).removeprefix("torch."),
        "is_encoder_decoder": decoder_start_id is not None,
        "teacher": _identity(teacher, model),
    }
    _open_cache(folder, manifest)
    writer = _Writer(
        source, folder, kind, top_k, dtype, decoder_start_id, torch.device(device or "cpu")
    )
    named = _named([r if isinstance(r, TokenRow) else token_row(r) for r in rows], writer.key_of)
    if not any(writer.steps_of(row) for row in named.values()):
        raise ValueError("no row has a completion, so there is nothing to ask the teacher about.")
    present = read_index(folder)
    missing = {key for key, row in named.items() if not writer.has(present, key, row)}
    with progress(
        "teacher cache", len(named), done=len(named) - len(missing), show=show_progress
    ) as bar:
        done = len(named) - len(missing)
        # Cut before what is there is left out: an interrupted run makes the same shards.
        for part in _parts(named, shard_tokens):
            wanted = {key: row for key, row in part.items() if key in missing}
            if wanted:
                writer.write(wanted, batch_size)
                done += len(wanted)
                bar.update(done)
    return CachedTeacher(folder)


class _Writer:
    """Turns rows into shards."""

    def __init__(
        self,
        source: Teacher,
        folder: Path,
        kind: Literal["hidden", "top_k"],
        top_k: int | None,
        dtype: torch.dtype | None,
        decoder_start_id: int | None,
        device: torch.device,
    ) -> None:
        self._source, self._folder, self._device = source, folder, device
        self._kind, self._top_k, self._dtype = kind, top_k, dtype
        self._decoder_start_id = decoder_start_id
        self._head_is_written = False

    def key_of(self, row: TokenRow) -> bytes:
        return row_key(row, is_encoder_decoder=self._decoder_start_id is not None)

    def steps_of(self, row: TokenRow) -> list[int]:
        return predicting_steps(row, is_encoder_decoder=self._decoder_start_id is not None)

    def has(self, present: Mapping[bytes, Entry], key: bytes, row: TokenRow) -> bool:
        steps = self.steps_of(row)
        return not steps or (key in present and present[key].covers(steps[0], steps[-1]))

    def write(self, rows: Mapping[bytes, TokenRow], batch_size: int) -> None:
        """Ask about the rows and write them as one shard."""
        found: dict[bytes, dict[str, Tensor]] = {}
        # Rows of like length share a batch: less padding.
        order = sorted(rows, key=lambda k: -len(rows[k].prompt_ids) - len(rows[k].completion_ids))
        for start in range(0, len(order), batch_size):
            keys = order[start : start + batch_size]
            batch = collate([rows[key] for key in keys], decoder_start_id=self._decoder_start_id)
            targets = self._source.targets(batch.to(self._device))
            if self._kind == "hidden" and not self._head_is_written:
                self._keep_head(targets)
            values = kept_values(targets, self._kind, top_k=self._top_k, dtype=self._dtype)
            split = {name: tensor.cpu().split(batch.counts) for name, tensor in values.items()}
            for i, key in enumerate(keys):
                found[key] = {name: tensors[i] for name, tensors in split.items()}
        starts = [self.steps_of(row)[0] for row in rows.values()]
        write_shard(self._folder, list(rows), starts, [found[key] for key in rows])

    def _keep_head(self, targets: Targets) -> None:
        if not isinstance(targets, HiddenTargets):
            raise ValueError(
                'kind="hidden" needs a teacher that gives hidden states and its head; this one '
                f'gives {type(targets).__name__}. Use kind="top_k".'
            )
        self._head_is_written = True
        head = targets.head
        if not (self._folder / HEAD).exists():
            write_head(self._folder, head)
            return
        kept = read_head(self._folder)
        numbers = (kept.scale, kept.softcap) == (head.scale, head.softcap)
        if not (numbers and _same(kept.weight, head.weight) and _same(kept.bias, head.bias)):
            raise RunConflictError(
                f"{self._folder} holds a cache of a teacher with another head. Choose another "
                "folder."
            )


def _same(kept: Tensor | None, new: Tensor | None) -> bool:
    if kept is None or new is None:
        return kept is new
    return torch.equal(kept, new.detach().cpu())


def _check(
    kind: str, top_k: int | None, dtype: torch.dtype | None, batch_size: int, shard_tokens: int
) -> None:
    check_choice("kind", kind, ("hidden", "top_k"))
    check_int("batch_size", batch_size, low=1)
    check_int("shard_tokens", shard_tokens, low=1)
    if kind == "hidden" and top_k is not None:
        raise ValueError(
            f'top_k={top_k} has no effect with kind="hidden", which keeps everything; leave it '
            'out, or set kind="top_k".'
        )
    if kind == "top_k":
        if top_k is None:
            raise ValueError('kind="top_k" needs top_k, the number of tokens to keep; 64 is usual.')
        check_int("top_k", top_k, low=1)
        # Rounded log-probabilities can add up to more than 1, which no tail makes good.
        check_choice("dtype", dtype, (None, torch.float32, torch.float64))


def _identity(teacher: object, model: object) -> dict[str, Any]:
    """Return what tells one teacher from another, as far as it can be told."""
    identity: dict[str, Any] = {"class": type(teacher).__name__}
    if isinstance(model, nn.Module):
        config: Any = getattr(model, "config", None)
        identity |= {
            "model": type(model).__name__,
            "name": getattr(config, "_name_or_path", "") or "",
            "fingerprint": _fingerprint(model),
        }
    elif isinstance(model, str):
        identity["model"] = model
    return identity


def _fingerprint(model: nn.Module) -> str:
    """Return a hash of all weights."""
    digest = hashlib.blake2b(digest_size=16)
    for name, tensor in sorted(model.state_dict().items()):
        if isinstance(tensor, Tensor):
            digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
            plain = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
            digest.update(plain.data)
    return digest.hexdigest()


def _open_cache(folder: Path, manifest: dict[str, Any]) -> None:
    """Begin a cache, or check that the one that is there was begun likewise."""
    path = folder / MANIFEST
    if not path.exists() or not any(folder.glob(SHARDS)):
        (folder / HEAD).unlink(missing_ok=True)  # of an attempt that came to nothing
        write_json(path, manifest)
        return
    changed = differences(read_json(path), manifest)
    if changed:
        listed = "\n".join(f"  {line}" for line in changed)
        raise RunConflictError(
            f"{folder} holds another teacher cache:\n{listed}\nChoose another folder."
        )


def _named(rows: Sequence[TokenRow], key_of: Callable[[TokenRow], bytes]) -> dict[bytes, TokenRow]:
    """Return each text once, unmasked; of one with several borders, the longest completion."""
    named: dict[bytes, TokenRow] = {}
    for row in rows:
        key = key_of(row)
        if key not in named or len(row.completion_ids) > len(named[key].completion_ids):
            named[key] = TokenRow(prompt_ids=row.prompt_ids, completion_ids=row.completion_ids)
    return named


def _parts(rows: Mapping[bytes, TokenRow], num_tokens: int) -> Iterator[dict[bytes, TokenRow]]:
    """Cut rows, in their order, into parts of at most so many tokens, or of one row."""
    part: dict[bytes, TokenRow] = {}
    size = 0
    for key, row in rows.items():
        length = len(row.completion_ids)
        if part and size + length > num_tokens:
            yield part
            part, size = {}, 0
        part[key] = row
        size += length
    if part:
        yield part
