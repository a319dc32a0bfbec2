"""Output layers that predict values: as a distribution over bins, or as a number.

Both heads are used alike, so that an agent takes either: ``forward`` gives logits
``[*batch, bins]``, or ``[*batch, outputs, bins]`` with several outputs (one an action); ``select``
takes those of the actions that were done; ``value`` reads numbers off; ``loss`` compares with
numbers. The scalar head has one bin, which holds the prediction itself.
"""

from collections.abc import Callable
from typing import Self

import torch
from jaxtyping import Float, Int64, Real
from torch import Tensor, nn

from selftrain._core.checks import check_int, check_range
from selftrain.kernels._dispatch import Backend
from selftrain.ops._bins import as_float, at_least_float32
from selftrain.ops.scalar_transforms import Identity, ScalarTransform
from selftrain.ops.value_loss import categorical_cross_entropy, check_same_place
from selftrain.ops.value_transforms import Grid, ValueTransform

__all__ = ["CategoricalValueHead", "ScalarValueHead"]


class CategoricalValueHead(nn.Module):
    """A linear layer to logits over bins, trained by cross entropy (arXiv 2403.03950).

    The centres of the bins are buffers of the head. They follow its device, and stay in float32
    when the head is made half precision (float64 with ``.double()``). A state dict of a head with
    other bins is refused, for its weights would mean other values.

    Args:
        in_features: Size of the last dimension of the input.
        transform: Where the bins are and how values become probabilities, such as ``HLGauss``.
        num_outputs: Values predicted for each input, such as the number of actions. With 1 logits
            and values have no dimension for it.

    Raises:
        TypeError: If ``transform`` is of another kind, or a number no integer.
        ValueError: If a number is below 1.

    Example:
        >>> from selftrain.ops import HLGauss, Support
        >>> head = CategoricalValueHead(64, HLGauss(Support(-10.0, 10.0, 51)))
        >>> logits = head(torch.zeros(8, 64))
        >>> loss = head.loss(logits, torch.ones(8)).mean()
        >>> head.value(logits).shape
        torch.Size([8])
    """

    centers: Tensor
    rest: Tensor

    def __init__(
        self, in_features: int, transform: ValueTransform, *, num_outputs: int = 1
    ) -> None:
        super().__init__()
        check_int("in_features", in_features, low=1)
        check_int("num_outputs", num_outputs, low=1)
        if not isinstance(transform, ValueTransform):
            raise TypeError(
                f"transform must be a ValueTransform, got {transform!r}; write, for example, "
                "HLGauss(Support(low, high, num_bins))."
            )
        self.transform, self.num_outputs = transform, num_outputs
        self.num_bins = transform.support.num_bins
        self.linear = nn.Linear(in_features, num_outputs * self.num_bins)
        # Made where parameters are made now, such as on the meta device.
        self._fill(self.linear.weight.device, torch.float32)

    def forward(
        self, features: Float[Tensor, "*batch features"]
    ) -> Float[Tensor, "*batch_and_output bins"]:
        """Return logits ``[*batch, bins]``, or ``[*batch, outputs, bins]`` if there are several."""
        return _outputs(self.linear(features), self.num_outputs)

    def value(self, logits: Float[Tensor, "*batch bins"]) -> Float[Tensor, "*batch"]:
        """Return the values that logits stand for, in float32; the gradient flows through.

        Raises:
            ValueError: If the last dimension is not the bins, or the devices differ.
        """
        return self.transform.decode(
            torch.softmax(at_least_float32(logits), -1), grid=self._grid(logits)
        )

    def select(
        self, logits: Float[Tensor, "*batch outputs bins"], actions: Int64[Tensor, "*batch"]
    ) -> Float[Tensor, "*batch bins"]:
        """Return the logits of one output each; see :meth:`ScalarValueHead.select`."""
        return _select(logits, actions, self.num_outputs)

    def loss(
        self,
        logits: Float[Tensor, "*batch bins"],
        targets: Real[Tensor, "*batch"] | None = None,
        *,
        target_probs: Float[Tensor, "*batch bins"] | None = None,
        weights: Real[Tensor, "*batch"] | None = None,
        backend: Backend = "auto",
    ) -> Float[Tensor, "*batch"]:
        """Return the cross entropy of each row of logits, in float32 under autocast as well.

        Args:
            logits: Of :meth:`forward`, and of :meth:`select` where there are actions.
            targets: Values; no gradient flows to them. Those outside the support are clamped:
                :meth:`measure` says how many.
            target_probs: Probabilities in place of values, such as those of ``C51.project``.
            weights: Factor of each loss, such as those of importance sampling.
            backend: Of the transform's cross entropy.

        Raises:
            ValueError: If not exactly one kind of target is given, shapes or devices do not belong
                together, or (on CPUs, outside of compiled graphs) a target is NaN or infinite or no
                distribution.
            TypeError: If targets are boolean or complex.
        """
        if (targets is None) == (target_probs is None):
            raise ValueError("give either targets (values) or target_probs (probabilities).")
        if targets is not None:
            check_same_place("targets", targets, "logits", logits)
            loss = self.transform.cross_entropy(
                logits, targets, grid=self._grid(logits), backend=backend
            )
        else:
            assert target_probs is not None  # noqa: S101 - one of the two is given
            loss = categorical_cross_entropy(logits, target_probs)
        return _weighted(loss, weights)

    @torch.no_grad()
    def measure(
        self, logits: Float[Tensor, "*batch bins"], targets: Real[Tensor, "*batch"]
    ) -> dict[str, Tensor]:
        """Return means over the batch to log, as scalars that stay on the device.

        "kl" is the loss less the entropy of the targets, which it cannot fall below (about 1.2 nats
        for HL-Gauss at its default); "absolute_error" compares readouts and targets;
        "clip_fraction" is the share of targets outside the support.
        """
        probs = self.transform.encode(targets, grid=self._grid(targets))
        entropy = torch.special.entr(probs).sum(-1)
        return {
            "kl": _mean(categorical_cross_entropy(logits, probs) - entropy),
            "absolute_error": _mean((self.value(logits) - targets).abs()),
            "clip_fraction": self.transform.clip_fraction(targets),
        }

    def reset_parameters(self) -> None:
        """Draw new weights, and write the centres again."""
        self.linear.reset_parameters()
        self._fill(self.centers.device, self.centers.dtype)

    def extra_repr(self) -> str:
        """Return what the module prints of itself."""
        return f"{self.transform}, num_outputs={self.num_outputs}"

    def _grid(self, beside: Tensor) -> Grid:
        if beside.device != self.centers.device:
            raise ValueError(
                f"the head is on {self.centers.device}, its argument on {beside.device}; move the "
                f"head by head.to({str(beside.device)!r})."
            )
        return Grid(self.centers, self.rest)

    def _fill(self, device: torch.device, dtype: torch.dtype) -> None:
        grid = self.transform.grid(dtype=dtype, device=device)
        self.register_buffer("centers", grid.centers)
        self.register_buffer("rest", grid.rest, persistent=False)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        before = self.centers
        super()._apply(fn, recurse)
        after = self.centers
        # Half precision would move the bins, and tensors that leave the meta device hold anything.
        if after.dtype != before.dtype or (before.is_meta and not after.is_meta):
            double = after.dtype == torch.float64
            self._fill(after.device, torch.float64 if double else torch.float32)
        return self

    def _load_from_state_dict(
        self,
        state_dict: dict[str, Tensor],
        prefix: str,
        local_metadata: dict,
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        saved, own = state_dict.get(f"{prefix}centers"), self.centers
        on_meta = own.is_meta or (saved is not None and saved.is_meta)
        if saved is not None and not on_meta and saved.shape == own.shape:
            step = self.transform.bins.step
            gap = (saved.to(own) - own).abs().max().item()
            if not gap <= 1e-3 * step:
                error_msgs.append(
                    f"the state was saved with bins from {saved[0].item():g} to "
                    f"{saved[-1].item():g}, and those of {prefix}transform go from "
                    f"{own[0].item():g} to {own[-1].item():g}: its weights mean other values. "
                    "Make the head with the transform that it was saved with."
                )
        super()._load_from_state_dict(
            state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        )


class ScalarValueHead(nn.Module):
    """A linear layer to one number, trained by squared error: what the categorical head replaces.

    The number is the value behind ``scalar``; the loss compares there, and :meth:`value` goes back.

    Args:
        in_features: Size of the last dimension of the input.
        num_outputs: Values predicted for each input, such as the number of actions. With 1 logits
            and values have no dimension for it.
        scalar: Applied to targets before they are compared.
        huber_delta: Error from which the loss is linear (Huber's loss, half the square below it, as
            DQN clips errors); None for the squared error.

    Raises:
        TypeError: If a number is no integer, or ``scalar`` of another kind.
        ValueError: If a number lies outside its range.

    Example:
        >>> head = ScalarValueHead(64, num_outputs=4)
        >>> logits = head(torch.zeros(8, 64))
        >>> chosen = head.select(logits, torch.zeros(8, dtype=torch.long))
        >>> head.loss(chosen, torch.ones(8)).shape
        torch.Size([8])
    """

    def __init__(
        self,
        in_features: int,
        *,
        num_outputs: int = 1,
        scalar: ScalarTransform | None = None,
        huber_delta: float | None = None,
    ) -> None:
        super().__init__()
        check_int("in_features", in_features, low=1)
        check_int("num_outputs", num_outputs, low=1)
        if huber_delta is not None:
            check_range("huber_delta", huber_delta, low=0.0, low_open=True)
        scalar = Identity() if scalar is None else scalar
        if isinstance(scalar, type) or not isinstance(scalar, ScalarTransform):
            raise TypeError(
                f"scalar must be an object with apply and invert, such as Symlog(), got {scalar!r}."
            )
        self.scalar, self.num_outputs, self.huber_delta = scalar, num_outputs, huber_delta
        self.linear = nn.Linear(in_features, num_outputs)

    def forward(
        self, features: Float[Tensor, "*batch features"]
    ) -> Float[Tensor, "*batch_and_output 1"]:
        """Return predictions ``[*batch, 1]``, or ``[*batch, outputs, 1]`` if there are several."""
        return _outputs(self.linear(features), self.num_outputs)

    def value(self, logits: Float[Tensor, "*batch 1"]) -> Float[Tensor, "*batch"]:
        """Return the values that predictions stand for, in float32; the gradient flows through.

        Raises:
            ValueError: If the last dimension is not 1.
        """
        return self.scalar.invert(self._predictions(logits))

    def select(
        self, logits: Float[Tensor, "*batch outputs bins"], actions: Int64[Tensor, "*batch"]
    ) -> Float[Tensor, "*batch bins"]:
        """Return the logits of one output each, before anything is computed of the others.

        Args:
            logits: Of :meth:`forward`.
            actions: Which output of each row.

        Raises:
            ValueError: If shapes do not belong together.
        """
        return _select(logits, actions, self.num_outputs)

    def loss(
        self,
        logits: Float[Tensor, "*batch 1"],
        targets: Real[Tensor, "*batch"] | None = None,
        *,
        target_probs: None = None,
        weights: Real[Tensor, "*batch"] | None = None,
    ) -> Float[Tensor, "*batch"]:
        """Return the squared or Huber error of each prediction, in float32.

        Args:
            logits: Of :meth:`forward`, and of :meth:`select` where there are actions.
            targets: Values; no gradient flows to them.
            target_probs: None; the categorical head takes probabilities here.
            weights: Factor of each loss.

        Raises:
            ValueError: If shapes or devices do not belong together, probabilities are given, or (on
                CPUs, outside of compiled graphs) a target is NaN or infinite.
            TypeError: If targets are boolean or complex.
        """
        if target_probs is not None or targets is None:
            raise ValueError(
                "a scalar head compares with targets (values), not with target_probs; use a "
                "CategoricalValueHead for distributions."
            )
        predictions = self._predictions(logits)
        check_same_place("targets", targets, "logits", logits)
        if targets.shape != predictions.shape:
            raise ValueError(
                f"logits has rows of shape {tuple(predictions.shape)}, targets has shape "
                f"{tuple(targets.shape)}; they must be equal (nothing is broadcast)."
            )
        error = predictions - self.scalar.apply(as_float("targets", targets))
        if self.huber_delta is None:
            return _weighted(error.square(), weights)
        delta = self.huber_delta
        inner = error.abs().clamp(max=delta)
        return _weighted(inner * (error.abs() - 0.5 * inner), weights)

    @torch.no_grad()
    def measure(
        self, logits: Float[Tensor, "*batch 1"], targets: Real[Tensor, "*batch"]
    ) -> dict[str, Tensor]:
        """Return "absolute_error", the mean over the batch, a scalar that stays on the device."""
        return {"absolute_error": _mean((self.value(logits) - targets).abs())}

    def reset_parameters(self) -> None:
        """Draw new weights."""
        self.linear.reset_parameters()

    def _predictions(self, logits: Tensor) -> Tensor:
        if logits.shape[-1:] != (1,):
            raise ValueError(
                f"logits of a scalar head have a last dimension of 1, got shape "
                f"{tuple(logits.shape)}."
            )
        return at_least_float32(logits).squeeze(-1)


def _outputs(logits: Tensor, num_outputs: int) -> Tensor:
    return logits if num_outputs == 1 else logits.unflatten(-1, (num_outputs, -1))


def _select(logits: Tensor, actions: Tensor, num_outputs: int) -> Tensor:
    if num_outputs == 1:
        raise ValueError("the head has one output: there is nothing to select from.")
    if logits.shape[-2:-1] != (num_outputs,) or logits.shape[:-2] != actions.shape:
        raise ValueError(
            f"logits has shape {tuple(logits.shape)}, actions {tuple(actions.shape)}; they must be "
            f"[*batch, {num_outputs}, bins] and [*batch]."
        )
    places = actions[..., None, None].expand(*actions.shape, 1, logits.shape[-1])
    return logits.gather(-2, places).squeeze(-2)


def _weighted(loss: Tensor, weights: Tensor | None) -> Tensor:
    if weights is None:
        return loss
    check_same_place("weights", weights, "logits", loss)
    if weights.shape != loss.shape:
        raise ValueError(
            f"weights has shape {tuple(weights.shape)}, the losses {tuple(loss.shape)}; they must "
            "be equal (nothing is broadcast)."
        )
    return loss * weights.to(loss.dtype)


def _mean(values: Tensor) -> Tensor:
    """Return the mean, and 0 of nothing."""
    return values.sum() / max(values.numel(), 1)
