"""When a Triton kernel runs in the place of eager code, and how it is made known to torch."""

import os
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any, Literal

import torch
from torch import Tensor

from selftrain._core.checks import check_choice

Backend = Literal["auto", "eager", "triton"]

# Triton reads the variable when it decorates a kernel, so a later change would come too late.
INTERPRETED = os.environ.get("TRITON_INTERPRET", "").lower() in ("1", "true", "on", "yes", "y")
_HAS_TRITON = find_spec("triton") is not None
_DTYPES = (torch.bfloat16, torch.float16, torch.float32)


def choose(backend: Backend, tensor: Tensor) -> Literal["eager", "triton"]:
    """Return which implementation runs on ``tensor``.

    Args:
        backend: "auto" takes Triton on CUDA tensors of a type that the kernels read (bfloat16,
            float16, float32), else eager code.
        tensor: The logits.

    Raises:
        ValueError: If "triton" is asked for and cannot run: the package is missing, the type is
            not supported, or the tensor is not on a GPU and TRITON_INTERPRET=1 was not set.
    """
    if backend == "auto":
        suits = tensor.is_cuda and tensor.dtype in _DTYPES and _HAS_TRITON
        return "triton" if suits else "eager"
    check_choice("backend", backend, ("auto", "eager", "triton"))
    if backend == "triton":
        if not _HAS_TRITON:
            raise ValueError("backend is 'triton', but the package triton is not installed.")
        if tensor.dtype not in _DTYPES:
            raise ValueError(
                f"backend is 'triton', whose kernels read bfloat16, float16 and float32, not "
                f"{tensor.dtype}; use backend='eager'."
            )
        if not (tensor.is_cuda or INTERPRETED):
            raise ValueError(
                f"backend is 'triton', but the logits are on {tensor.device}; use backend='auto', "
                "or set TRITON_INTERPRET=1 before Python starts to run the kernels without a GPU."
            )
    return backend


def register(name: str, fake: Callable[..., Any]) -> Callable[[Callable[..., Any]], Any]:
    """Make a function that launches kernels an operator that ``torch.compile`` passes through.

    Args:
        name: "selftrain::something".
        fake: Returns empty outputs of the right shapes, for tracing.
    """

    def decorate(function: Callable[..., Any]) -> Any:
        # Under the interpreter there are no kernels to look into: the operator is opaque.
        if INTERPRETED:
            operator = torch.library.custom_op(name, function, mutates_args=())
            operator.register_fake(fake)
            return operator
        return torch.library.triton_op(name, function, mutates_args=())

    return decorate


def launch(kernel: Any) -> Any:
    """Return ``kernel`` as something to index with a grid and call, inside of an operator."""
    return kernel if INTERPRETED else torch.library.wrap_triton(kernel)
