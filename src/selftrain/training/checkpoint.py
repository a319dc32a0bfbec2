"""Checkpoints of a training run: one safetensors file with model, optimizer and step.

A checkpoint is written beside the last one, renamed into place, and only then is the last one
removed. Whenever the process is killed, one whole checkpoint remains.
"""

import contextlib
import json
import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from selftrain._core.io import save_tensors

_NAME = re.compile(r"checkpoint-(\d{8,})\.safetensors")
_MODEL, _OPTIMIZER = "model/", "optimizer/"


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """What a checkpoint holds beside tensors."""

    step: int
    """Number of optimizer steps taken."""
    extra: dict[str, Any]
    """What the caller stored."""


def save_checkpoint(
    folder: str | Path,
    step: int,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    extra: dict[str, Any] | None = None,
) -> Path:
    """Write ``checkpoint-<step>.safetensors`` into ``folder`` and remove the older ones.

    Survives the death of the process at any moment, not that of the machine: the file is not forced
    to disk, which would cost more than a small model's training step.

    Args:
        folder: Where checkpoints lie; made if absent.
        step: Number of optimizer steps taken.
        model: The model; tied weights are stored once. Not a wrapper of it (unwrap DDP first).
        optimizer: Its optimizer; every state must be a tensor, as AdamW's are.
        extra: Plain data to get back from :func:`load_checkpoint`.

    Returns:
        The new file's path.

    Raises:
        OSError: If it cannot be written (a full disk, say). The last checkpoint is intact then, and
            nothing half-written is left.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    older = _files(folder)
    path = folder / f"checkpoint-{step:08d}.safetensors"
    tensors = {_MODEL + name: tensor for name, tensor in _unique_state(model).items()}
    tensors |= _optimizer_tensors(model, optimizer)
    # One key, because the order of several in the file is not determined.
    metadata = {"checkpoint": json.dumps({"step": step, "extra": extra or {}})}
    save_tensors(path, tensors, metadata=metadata)
    for old in older.values():
        if old != path:
            old.unlink(missing_ok=True)
    return path


def load_checkpoint(
    folder: str | Path, model: nn.Module, optimizer: torch.optim.Optimizer
) -> Checkpoint | None:
    """Restore model and optimizer in place from the newest checkpoint in ``folder``.

    Returns:
        Its step and extra data; None if there is no checkpoint (nothing is changed then).

    Raises:
        ValueError: If the file is damaged, or its tensors are not those of this model.
    """
    files = _files(Path(folder))
    if not files:
        return None
    path = files[max(files)]
    try:
        with safe_open(str(path), framework="pt") as file:
            metadata = json.loads(file.metadata()["checkpoint"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(
            f"{path} is not a whole checkpoint ({error}); delete it to begin again."
        ) from error
    _restore_model(path, model, tensors)
    _restore_optimizer(model, optimizer, tensors)
    return Checkpoint(step=metadata["step"], extra=metadata["extra"])


def remove_checkpoints(folder: str | Path) -> None:
    """Remove what a finished run kept in order to be continued; its metrics stay."""
    for path in _files(Path(folder)).values():
        path.unlink(missing_ok=True)
    shutil.rmtree(Path(folder) / "best", ignore_errors=True)


def _files(folder: Path) -> dict[int, Path]:
    """Return the checkpoints in ``folder`` by step."""
    with contextlib.suppress(FileNotFoundError):
        matches = [(_NAME.fullmatch(name), name) for name in os.listdir(folder)]
        return {int(match[1]): folder / name for match, name in matches if match}
    return {}


def _unique_state(model: nn.Module) -> dict[str, Tensor]:
    """Return parameters and persistent buffers, each tensor under its first name only."""
    seen: dict[int, str] = {}
    state = model.state_dict(keep_vars=True)
    return {k: v for k, v in state.items() if seen.setdefault(id(v), k) == k}


def _optimizer_tensors(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    return {
        f"{_OPTIMIZER}{key}/{name}": value
        for name, parameter in model.named_parameters()
        for key, value in optimizer.state.get(parameter, {}).items()
    }


def _restore_model(path: Path, model: nn.Module, tensors: dict[str, Tensor]) -> None:
    state = _unique_state(model)
    saved = {k.removeprefix(_MODEL): v for k, v in tensors.items() if k.startswith(_MODEL)}
    wrong = sorted(set(state) ^ set(saved))
    wrong += [k for k in state if k in saved and state[k].shape != saved[k].shape]
    if wrong:
        raise ValueError(
            f"{path} was saved from another model: it differs in {', '.join(wrong[:5])}"
            f"{' ...' if len(wrong) > 5 else ''}."
        )
    with torch.no_grad():
        for name, tensor in state.items():
            tensor.copy_(saved[name])


def _restore_optimizer(
    model: nn.Module, optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]
) -> None:
    names = {id(p): name for name, p in model.named_parameters()}
    ordered = [names[id(p)] for group in optimizer.param_groups for p in group["params"]]
    state: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        if name.startswith(_OPTIMIZER):
            key, parameter = name.removeprefix(_OPTIMIZER).split("/", 1)
            # Cloned: the loaded tensor is a view of the mapped file, which will be removed.
            state.setdefault(ordered.index(parameter), {})[key] = tensor.clone()
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": state, "param_groups": groups})
