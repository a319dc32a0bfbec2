"""The trainable part of a model, set aside: to start from it again, or to tell it apart."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import torch
from torch import Tensor, nn

from selftrain._core.io import load_tensors, save_tensors

_FILE = "trainable.safetensors"


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Copies of a model's trainable parameters, on the CPU.

    With adapters (PEFT) those are all there is to set aside; the frozen rest never changes.
    """

    tensors: dict[str, Tensor]
    """By name; tied parameters once."""

    @classmethod
    def take(cls, model: nn.Module) -> Self:
        """Copy the trainable parameters of ``model``.

        Raises:
            ValueError: If it has none.
        """
        tensors = {
            name: parameter.detach().to("cpu", copy=True)
            for name, parameter in model.named_parameters()
            if parameter.requires_grad
        }
        if not tensors:
            raise ValueError("the model has no parameter that requires gradients.")
        return cls(tensors)

    @torch.no_grad()
    def restore(self, model: nn.Module) -> None:
        """Put the copies back, in place.

        Raises:
            ValueError: If the model's trainable parameters are other ones.
        """
        own = {name: p for name, p in model.named_parameters() if p.requires_grad}
        wrong = sorted(set(own) ^ set(self.tensors))
        wrong += [
            n for n, p in own.items() if n in self.tensors and p.shape != self.tensors[n].shape
        ]
        if wrong:
            raise ValueError(
                f"the snapshot is of another model: it differs in {', '.join(wrong[:5])}"
                f"{' ...' if len(wrong) > 5 else ''}."
            )
        for name, parameter in own.items():
            parameter.copy_(self.tensors[name])

    def save(self, folder: str | Path) -> None:
        """Write the copies to a file in ``folder``, atomically."""
        save_tensors(Path(folder) / _FILE, self.tensors)

    @classmethod
    def load(cls, folder: str | Path) -> Self:
        """Read what :meth:`save` wrote."""
        return cls(load_tensors(Path(folder) / _FILE))

    def fingerprint(self) -> str:
        """Return 16 hexadecimal digits that change with any bit of any parameter."""
        return _fingerprint(self.tensors)


def weights_fingerprint(model: nn.Module) -> str:
    """Return 16 hexadecimal digits that change with any bit of any parameter, frozen or not."""
    return _fingerprint({name: parameter.detach() for name, parameter in model.named_parameters()})


def _fingerprint(tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.blake2b(digest_size=8)
    for name in sorted(tensors):
        tensor = tensors[name].cpu().contiguous()
        digest.update(f"{name}:{tensor.dtype}:{tuple(tensor.shape)};".encode())
        digest.update(tensor.flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()
