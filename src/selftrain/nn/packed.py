"""Weights laid out for the processor, for decoding on CPUs."""

import copy
from typing import Any

import torch
from torch import Tensor, nn

# A packed weight is opaque, and torch.compile cannot hold one: what it sees is the plain weight,
# and the operator takes the packed form that the weight carries along.
_CARRIED = "packed"
_LIBRARY = torch.library.Library("selftrain", "FRAGMENT")
_LIBRARY.define("packed_linear(Tensor input, Tensor weight, Tensor? bias) -> Tensor")


class PackedLinear(nn.Module):
    """A linear layer with its weight also as oneDNN orders it, for inference on a CPU.

    A few tokens at a time, the usual product spends its time reading the weight in an order that
    does not suit it: with one token only one thread works, with several the weight is rearranged
    for every product. Packed once, it is read as fast as memory allows.

    Args:
        linear: The layer to take weight and bias from; it is left as it is.

    Raises:
        ValueError: If the layer is not on a CPU, or in a dtype that cannot be packed.
    """

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        weight = linear.weight.detach()
        if weight.device.type != "cpu" or weight.dtype not in (torch.float32, torch.bfloat16):
            raise ValueError(
                f"weights are packed on CPUs, in float32 or bfloat16; this one is {weight.dtype} "
                f"on {weight.device}."
            )
        self.in_features, self.out_features = linear.in_features, linear.out_features
        # Not parameters or buffers: an opaque layout can be neither moved nor saved.
        self.packed = torch.ops.mkldnn._reorder_linear_weight(weight)
        self.weight = weight
        setattr(weight, _CARRIED, self.packed)
        self.bias = None if linear.bias is None else linear.bias.detach()

    def forward(self, input: Tensor) -> Tensor:
        """Return ``input @ weight.T + bias``."""
        if torch.compiler.is_compiling():
            return torch.ops.selftrain.packed_linear(input, self.weight, self.bias)
        return _packed_linear(input, self.packed, self.bias)


def pack_weights(model: nn.Module) -> nn.Module:
    """Return a copy of ``model`` for inference on a CPU, its linear layers packed.

    Everything else is shared with the original, which stays as it is; the packed weights take as
    much memory again. Later changes of the original's weights do not reach them. Results differ
    from the original's by rounding alone.

    Args:
        model: Any module, in float32 or bfloat16.

    Raises:
        ValueError: If a linear layer cannot be packed; see :class:`PackedLinear`.

    Example:
        >>> model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> x = torch.ones(3, 8)
        >>> with torch.inference_mode():
        ...     torch.testing.assert_close(pack_weights(model)(x), model(x))
    """
    return _packed(model, {})


def _packed_linear(input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise(input, weight, bias, "none", [], "")


def _packed_linear_cpu(input: Tensor, weight: Any, bias: Tensor | None) -> Tensor:
    return _packed_linear(input, getattr(weight, _CARRIED, weight), bias)


def _packed_linear_shape(input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return input.new_empty(*input.shape[:-1], weight.shape[0])


_LIBRARY.impl("packed_linear", _packed_linear_cpu, "CPU")
_LIBRARY.impl("packed_linear", _packed_linear_shape, "Meta")


def _packed(module: nn.Module, done: dict[int, nn.Module]) -> nn.Module:
    """Copy a module and those below it; one that occurs twice is copied once."""
    if id(module) not in done:
        # Subclasses of Linear may do something of their own.
        if type(module) is nn.Linear:
            done[id(module)] = PackedLinear(module)
        else:
            twin = done[id(module)] = copy.copy(module)
            children = module._modules.items()
            twin._modules = {
                name: None if child is None else _packed(child, done) for name, child in children
            }
    return done[id(module)]
