"""An exponential moving average of a model's weights."""

import copy
import json
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor, nn

from selftrain._core.checks import check_int, check_range
from selftrain._core.io import save_tensors


class EMA:
    r"""Keeps a copy of a model whose weights follow the model's slowly.

    .. math:: \bar\theta_n = d\,\bar\theta_{n-1} + (1 - d)\,\theta_n, \quad \bar\theta_0 = \theta_0

    Only parameters that require gradients are averaged, and only they are copied: frozen ones are
    shared with the model, so that the average of a model with adapters costs no more than the
    adapters. Buffers are copied as they are. Averages of half-precision weights are kept in
    float32, for there a step of :math:`1 - d` would round to nothing.

    Args:
        model: The model to follow; not a wrapper of it for several processes.
        decay: The factor d, in [0, 1]; 0 copies the model, 1 keeps it as it was at first.
        update_every: Take only every so many-th call of :meth:`update`.

    Raises:
        ValueError: If an argument is out of range or no parameter requires a gradient.

    Example:
        >>> layer = nn.Linear(1, 1, bias=False)
        >>> average = EMA(layer, decay=0.5)
        >>> with torch.no_grad():
        ...     layer.weight.add_(1.0).numel()
        1
        >>> average.update()
        >>> (layer.weight - average.model.weight).item()
        0.5
    """

    def __init__(self, model: nn.Module, decay: float = 0.999, *, update_every: int = 1) -> None:
        check_range("decay", decay, low=0.0, high=1.0)
        check_int("update_every", update_every, low=1)
        self._source, self.decay, self.update_every = model, decay, update_every
        self._names = tuple(n for n, p in model.named_parameters() if p.requires_grad)
        if not self._names:
            raise ValueError(
                "no parameter of the model requires a gradient, so its average would be the model "
                "itself; make the average before freezing."
            )
        frozen = {id(p): p for p in model.parameters() if not p.requires_grad}
        self.model = copy.deepcopy(model, frozen).requires_grad_(False).eval()
        """The average, frozen and in evaluation mode."""
        self.num_updates = 0
        """Calls of :meth:`update` so far."""
        copied = dict(self.model.named_parameters())
        self._exact = {
            name: copied[name].float() for name in self._names if copied[name].itemsize < 4
        }

    @torch.no_grad()
    def update(self) -> None:
        """Take the model's current weights into the average; call it after each optimizer step.

        Raises:
            ValueError: If other parameters require gradients than at first.
        """
        sources = {n: p for n, p in self._source.named_parameters() if p.requires_grad}
        if sources.keys() != set(self._names):
            changed = sorted(sources.keys() ^ set(self._names))
            raise ValueError(
                f"{changed[0]} was frozen or unfrozen since the average was made, and frozen "
                "parameters are shared with it. Make a new average after such a change."
            )
        self.num_updates += 1
        if self.num_updates % self.update_every:
            return
        averages = self._averages()
        for name, source in sources.items():
            average = averages[name]
            average.lerp_(source.detach().to(average), 1.0 - self.decay)
        self._write_back()
        own = dict(self.model.named_buffers())
        for name, buffer in self._source.named_buffers():
            own[name].copy_(buffer)

    def save(self, path: str | Path) -> None:
        """Write the averages and the number of updates to one safetensors file, atomically."""
        save_tensors(
            path, self._averages(), metadata={"ema": json.dumps({"num_updates": self.num_updates})}
        )

    @torch.no_grad()
    def load(self, path: str | Path) -> None:
        """Continue from what :meth:`save` wrote.

        Raises:
            ValueError: If the file is of another model.
        """
        averages = self._averages()
        with safe_open(str(path), framework="pt") as file:
            saved = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            metadata = json.loads((file.metadata() or {}).get("ema", "{}"))
        wrong = sorted(saved.keys() ^ averages.keys())
        wrong += [n for n in averages if n in saved and averages[n].shape != saved[n].shape]
        if wrong or "num_updates" not in metadata:
            raise ValueError(
                f"{path} does not hold the averages of this model"
                f"{f': it differs in {wrong[0]}' if wrong else ''}. Make the average of the model "
                "that it was saved with, with the same parameters frozen."
            )
        for name, average in averages.items():
            average.copy_(saved[name])
        self._write_back()
        self.num_updates = metadata["num_updates"]

    def _averages(self) -> dict[str, Tensor]:
        """Return the averages at their full precision, where the model is now."""
        copied = dict(self.model.named_parameters())
        for name, exact in self._exact.items():
            self._exact[name] = exact.to(copied[name].device)
        return {name: self._exact.get(name, copied[name]) for name in self._names}

    def _write_back(self) -> None:
        copied = dict(self.model.named_parameters())
        for name, exact in self._exact.items():
            copied[name].copy_(exact)
