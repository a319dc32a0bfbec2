"""The output head of any Hugging Face model, and the hidden states that it projects.

A model's logits are :math:`f(h W^T + b)`, with f the identity for most, a factor or a soft-cap for
some. Losses that project hidden states themselves need h, W, b and f. They are found by asking the
model, not by knowing architectures: h is what the head receives in a forward pass (behind every
norm and factor, such as T5's), and f is read off by letting the head return a ramp.

Shape letters: B batch, T time, N scored tokens, V vocabulary, H hidden size.
"""

import contextlib
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from selftrain.nn.modes import training_mode
from selftrain.ops.linear_divergence import Head
from selftrain.training.batch import MicroBatch, scored_logits, takes_logits_to_keep
from selftrain.training.targets import HiddenTargets, LogitTargets

# The ramp: large enough that a soft-cap saturates, and small enough that one is a straight line.
_SMALL, _STRAIGHT, _LARGE = 1e-2, 0.1, 1e4


@dataclass(frozen=True, slots=True)
class HeadAccess:
    """Where a model's head is, and what becomes of its output."""

    module: nn.Linear
    """The head; it may be tied to the embeddings."""
    scale: float
    """Factor on the head's output."""
    softcap: float | None
    """Bound of the tanh after the factor; None: there is none."""
    slices_logits: bool
    """Whether the model can project the last time steps only."""

    @property
    def head(self) -> Head:
        """The head as the losses take it."""
        return Head(self.module.weight, self.module.bias, scale=self.scale, softcap=self.softcap)


@torch.no_grad()
def find_head(model: nn.Module, *, slices_logits: bool) -> HeadAccess | None:
    """Return access to the model's head, or None where it is no plain linear layer.

    None also for models that post-process logits in another way than by a factor and a soft-cap, or
    that cannot be asked (compiled ones, for example): use their logits then.

    Args:
        model: Returns logits the Hugging Face way. It is run once, on one token.
        slices_logits: See :func:`selftrain.training.batch.takes_logits_to_keep`.
    """
    get_head = getattr(model, "get_output_embeddings", None)
    head = get_head() if get_head is not None else None
    # A subclass, an adapter or a quantised layer computes something else than h W^T + b.
    plain = isinstance(head, nn.Linear) and type(head).forward is nn.Linear.forward
    if not plain or isinstance(model, torch._dynamo.OptimizedModule) or not head.weight.numel():
        return None
    try:
        curve = _curve(model, head)
    except (RuntimeError, ValueError, TypeError, IndexError):  # it does not take such inputs
        return None
    rtol = 1e-4 if head.weight.dtype in (torch.float32, torch.float64) else 2e-2
    found = _fit(*curve, rtol=rtol) if curve is not None else None
    return found and HeadAccess(head, *found, slices_logits)


class Scorer:
    """Asks a model what it makes of scored places: hidden states and head if it has a plain one.

    Args:
        module: The model, before it is wrapped for several processes.
        hidden: Whether hidden states may be taken. They must not where parameters are sharded over
            processes, for the head is whole only inside the forward pass then.
    """

    def __init__(self, module: nn.Module, *, hidden: bool = True) -> None:
        self._slices = takes_logits_to_keep(module)
        self._access = find_head(module, slices_logits=self._slices) if hidden else None

    def __call__(self, model: nn.Module, batch: MicroBatch) -> HiddenTargets | LogitTargets:
        """Run ``model``, which is the module or its wrapper, on the batch."""
        if self._access is None:
            return LogitTargets(scored_logits(model, batch, slices_logits=self._slices))
        return scored_hidden(model, batch, self._access)


def scored_hidden(model: nn.Module, batch: MicroBatch, access: HeadAccess) -> HiddenTargets:
    """Return the ``[N, H]`` hidden states whose logits predict the scored tokens, and the head.

    The states are of the type that the head's product is computed in, under autocast as well.

    Args:
        model: The model, or what wraps it for several processes: its own forward pass is run.
        batch: The inputs.
        access: Of the model, from :func:`find_head`.
    """
    time = batch.inputs.get("decoder_input_ids", batch.inputs["input_ids"]).shape[1]
    keep = {"logits_to_keep": time - batch.first} if access.slices_logits else {}
    seen: list[Tensor] = []

    def capture(hidden_BTH: Tensor) -> Tensor:
        kind = hidden_BTH.device.type
        autocast = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None
        seen.append(hidden_BTH.to(autocast or access.module.weight.dtype))
        return hidden_BTH[..., :1]  # nobody looks at it

    with _forward_of(access.module, capture):
        model(**batch.inputs, use_cache=False, **keep)
    (hidden_BTH,) = seen
    if not access.slices_logits:
        # Counted from the end: the virtual tokens of prompt tuning stand in front.
        hidden_BTH = hidden_BTH[:, batch.first - time :]
    return HiddenTargets(hidden_BTH.flatten(0, 1).index_select(0, batch.positions), access.head)


@contextlib.contextmanager
def _forward_of(module: nn.Module, forward: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """Put another forward function in a module's place for a while."""
    own = module.__dict__.get("forward")
    module.forward = forward
    try:
        yield
    finally:
        del module.forward
        if own is not None:
            module.forward = own


def _curve(model: nn.Module, head: nn.Linear) -> tuple[Tensor, Tensor] | None:
    """Return head outputs, and what the model makes logits of them."""
    num, dtype, device = head.out_features, head.weight.dtype, head.weight.device
    sizes = torch.logspace(math.log10(_SMALL), math.log10(_LARGE), num, dtype=torch.float64)
    ramp = (sizes * (-1.0) ** torch.arange(num)).to(device, dtype)
    calls: list[Tensor] = []

    def answer(hidden_BTH: Tensor) -> Tensor:
        calls.append(hidden_BTH)
        return ramp.expand(*hidden_BTH.shape[:-1], -1).clone()  # some models work in place

    token = torch.zeros(1, 1, dtype=torch.long, device=device)
    inputs: dict[str, Any] = {"input_ids": token, "attention_mask": torch.ones_like(token)}
    if getattr(getattr(model, "config", None), "is_encoder_decoder", False):
        inputs["decoder_input_ids"] = token
    with training_mode(False, model), _forward_of(head, answer):
        logits = model(**inputs, use_cache=False).logits
    if len(calls) != 1 or logits.shape != (1, 1, num):  # prompt tuning adds steps of its own
        return None
    return ramp.double().cpu(), logits.flatten().double().cpu()


def _fit(x: Tensor, y: Tensor, *, rtol: float) -> tuple[float, float | None] | None:
    """Return factor and soft-cap such that y = cap tanh(factor x / cap), or None."""
    straight = x.abs() <= _STRAIGHT
    # The mean over many values undoes the rounding of half precision.
    scale = (y[straight] / x[straight]).mean().item()
    softcap = y.abs().max().item()
    for cap in (None, softcap):
        line = scale * x
        expected = line if cap is None else cap * torch.tanh(line / cap)
        if torch.allclose(y, expected, rtol=rtol, atol=0.0):
            return scale, cap
    return None
