r"""The chunk loop under :func:`selftrain.ops.linear_divergence`: hidden states in, gradients out.

One operator computes the loss and, as the weights of the rows are known, its gradients in the same
pass over chunks of tokens: project, score, multiply the gradient of the logits back. The backward
pass only scales them. The operator is opaque to ``torch.compile``, which has nothing to gain in it:
it consists of matrix products, and of elementwise work that has a Triton form.

Shape letters: N rows, C rows of a chunk, V vocabulary, D features.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from selftrain.ops._row_divergence import VALUES, row_divergence
from selftrain.ops._row_nll import NLL_VALUES, row_nll

# Without a stated budget: this much memory, and on a CPU at most this many tokens. With fewer, the
# products spend their time on packing the heads anew; with more, on pages for the logits.
_DEFAULT_BUDGET, _CPU_TOKENS = 2**30, 512
# On a CPU a head of another type than the products' is converted this many elements at a time.
_PIECE = 2**22
# Float16 has nothing below 6e-8: there the gradients of logits (mostly below 1, and rarely above
# 100) are kept this many times larger than the largest weight makes them.
_FLOAT16_GAIN = 256.0

Score = Callable[..., tuple[dict[str, Tensor], Tensor | None]]


class LinearLoss(torch.autograd.Function):
    """The operator with its gradients, which the backward pass multiplies by one number."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        with_grad: bool,
        *arguments: Any,
    ) -> tuple[Tensor, Tensor]:
        needs = [with_grad and need for need in ctx.needs_input_grad[:3]]
        # Eagerly the function itself: calling an operator imports all of the compiler.
        function = _operator if torch.compiler.is_compiling() else linear_loss
        loss, values, scale, *grads = function(hidden, weight, bias, *arguments, needs=needs)
        ctx.save_for_backward(scale, *grads)
        ctx.dtypes = [hidden.dtype, weight.dtype, None if bias is None else bias.dtype]
        ctx.mark_non_differentiable(values)
        ctx.set_materialize_grads(False)
        return loss, values

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor | None) -> tuple[Tensor | None, ...]:
        rest = (None,) * (len(ctx.needs_input_grad) - 3)
        if grad_outputs[0] is None:
            return (None, None, None, *rest)
        scale, *grads = ctx.saved_tensors
        scale = scale * grad_outputs[0]
        scaled = [
            _scaled(grad, scale).to(dtype) if need else None
            for grad, dtype, need in zip(grads, ctx.dtypes, ctx.needs_input_grad[:3], strict=True)
        ]
        return (*scaled, *rest)


def _scaled(grad: Tensor, scale: Tensor) -> Tensor:
    """Return ``grad * scale``, without a copy if no later backward pass can read ``grad``.

    The copy of a large head's gradient would be the peak of the memory of a training step.
    """
    keeps_graph = getattr(torch._C._autograd, "_get_current_graph_task_keep_graph", None)
    if torch.compiler.is_compiling() or keeps_graph is None or keeps_graph():
        return grad * scale
    on_cpu = scale.device.type == "cpu"  # where looking costs less than a pass over the gradient
    return grad if on_cpu and scale.item() == 1.0 else grad.mul_(scale)


def linear_loss(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    teacher_hidden: Tensor | None,
    teacher_weight: Tensor | None,
    teacher_bias: Tensor | None,
    labels: Tensor | None,
    weights: Tensor,
    kind: str,
    parameter: float,
    factor: float,
    temperature: float,
    scale: float,
    softcap: float | None,
    teacher_scale: float,
    teacher_softcap: float | None,
    budget: int | None,
    measure: bool,
    backend: str,
    needs: list[bool],
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return loss, values [names, N], a number, and gradients of hidden, weight and bias over it.

    With labels the loss is their negative log-likelihood, else the divergence from the teacher.
    Gradients that are not needed are empty.
    """
    options = {
        "temperature": temperature,
        "student_scale": scale,
        "student_softcap": softcap,
        "measure": measure,
    }
    with torch.autocast(hidden.device.type, enabled=False):  # the products choose their own type
        rows = _Rows.of(weights)
        dtype = _wide(hidden, weight, teacher_hidden, teacher_weight)
        # The shared prefix: what one model has more is padding of its embedding.
        vocab = len(weight) if teacher_weight is None else min(len(weight), len(teacher_weight))
        student = _Linear.of(rows.take(hidden), weight, bias, vocab, dtype)
        score: Score = partial(row_nll, **options)
        others: _Linear | _Labels
        if labels is not None:
            others = _Labels.of(rows.take(labels), vocab)
        elif teacher_hidden is not None and teacher_weight is not None:
            options |= {"teacher_scale": teacher_scale, "teacher_softcap": teacher_softcap}
            options |= {"kind": kind, "parameter": parameter, "factor": factor}
            score = partial(_row_function(backend, dtype), **options)
            hidden_T = rows.take(teacher_hidden)
            others = _Linear.of(hidden_T, teacher_weight, teacher_bias, vocab, dtype)
        else:
            raise ValueError("linear_loss needs a teacher or labels.")
        kept = rows.take(weights).to(dtype)
        gain = _gain(student.hidden.dtype, kept)
        totals = _Totals(student, len(weight), needs)
        row_bytes, on_cpu = _row_bytes(student, dtype), hidden.device.type == "cpu"
        size = chunk_size(len(kept), row_bytes, budget, on_cpu=on_cpu)
        values = rows.spread(_run(student, others, kept * gain, score, totals, size), 1)
        loss = values[0] @ weights.to(dtype)
        dh = rows.spread(totals.hidden) if needs[0] else totals.hidden
    return loss, values, 1.0 / gain, dh, totals.weight, totals.bias


def value_names(kind: str, measure: bool) -> tuple[str, ...]:
    """Return what the rows of the operator's second output are."""
    if not measure:
        return VALUES[:1]
    return NLL_VALUES if kind == "nll" else VALUES


_operator = torch.library.custom_op("selftrain::linear_loss", linear_loss, mutates_args=())


@_operator.register_fake
def _fake(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, *arguments: Any
) -> tuple[Tensor, ...]:
    (teacher_hidden, teacher_weight), kind, measure = arguments[:2], arguments[5], arguments[14]
    dtype = _wide(hidden, weight, teacher_hidden, teacher_weight)
    shapes = [hidden.shape, weight.shape, weight.shape[:1]]
    grads = [
        hidden.new_empty(shape if need else (0,), dtype=dtype)
        for shape, need in zip(shapes, arguments[-1], strict=True)
    ]
    values = hidden.new_empty((len(value_names(kind, measure)), len(hidden)), dtype=dtype)
    scalars = [hidden.new_empty((), dtype=dtype) for _ in range(2)]
    return scalars[0], values, scalars[1], *grads


def chunk_size(num_rows: int, row_bytes: int, budget: int | None, *, on_cpu: bool) -> int:
    """Return how many tokens have their logits in memory at once, within ``budget`` bytes.

    At least one token is taken, whatever the budget. The chunks are of about equal size, a multiple
    of 64 where that is possible.
    """
    limit = max(1, (_DEFAULT_BUDGET if budget is None else budget) // row_bytes)
    if budget is None and on_cpu:
        limit = min(limit, _CPU_TOKENS)
    if num_rows <= limit:
        return max(num_rows, 1)
    step = 64 if limit >= 64 else 1
    num_chunks = -(-num_rows // (limit // step * step))
    return -(-num_rows // (num_chunks * step)) * step


def _row_bytes(student: "_Linear", dtype: torch.dtype) -> int:
    """Return what a token's logits take: both models', and beside them the gradient of a kernel."""
    grad = student.hidden.dtype.itemsize if student.hidden.is_cuda else 0
    return max(1, len(student.weight) * (2 * dtype.itemsize + grad))


def _run(
    student: "_Linear",
    others: "_Linear | _Labels",
    weights_N: Tensor,
    score: Score,
    totals: "_Totals",
    size: int,
) -> Tensor:
    """Go through the chunks; add the gradients to ``totals`` and return the values [names, N]."""
    num, vocab = len(weights_N), len(student.weight)
    student_CV = weights_N.new_empty((min(size, num), vocab))
    teacher_CV = torch.empty_like(student_CV) if isinstance(others, _Linear) else student_CV
    grad_dtype = student.hidden.dtype if totals.wanted else None
    parts = []
    for start in range(0, max(num, 1), size):  # one empty chunk, if there are no rows
        rows = slice(start, min(start + size, num))
        s = student.chunk(rows, student_CV)
        t = others.chunk(rows, teacher_CV)
        values, grad_CV = score(s, t, weights_N[rows], grad_dtype=grad_dtype)
        parts.append(torch.stack(list(values.values())))
        if grad_CV is not None:
            totals.add(grad_CV, rows)
    return torch.cat(parts, 1)


@dataclass(frozen=True, slots=True)
class _Linear:
    """Hidden states and a head, the states in the type of the matrix products."""

    hidden: Tensor
    weight: Tensor
    bias: Tensor | None

    @classmethod
    def of(
        cls, hidden: Tensor, weight: Tensor, bias: Tensor | None, vocab: int, dtype: torch.dtype
    ) -> "_Linear":
        """Choose the type: tensor cores read halves and store float32; others get float32."""
        weight, bias = weight[:vocab], None if bias is None else bias[:vocab]
        if not hidden.is_cuda:
            return cls(hidden.to(dtype), weight, bias)
        hidden = hidden if hidden.dtype in (torch.bfloat16, torch.float16) else hidden.to(dtype)
        return cls(
            hidden, weight.to(hidden.dtype), bias
        )  # a copy under autocast, which has one too

    def chunk(self, rows: slice, buffer_CV: Tensor) -> Tensor:
        """Return ``h W^T + b`` of some rows, in the buffer."""
        out = buffer_CV[: rows.stop - rows.start]
        for columns, weight in self.pieces():
            _product(out[:, columns], self.hidden[rows], weight.T)
        return out if self.bias is None else out.add_(self.bias)

    def pieces(self) -> Iterator[tuple[slice, Tensor]]:
        """Yield the weight in the type of the products, converted piece by piece if need be."""
        vocab, features = self.weight.shape
        whole = self.weight.dtype == self.hidden.dtype
        size = vocab if whole else max(1, _PIECE // max(features, 1))
        for start in range(0, vocab, size):
            columns = slice(start, min(start + size, vocab))
            yield columns, self.weight[columns].to(self.hidden.dtype)


@dataclass(frozen=True, slots=True)
class _Labels:
    labels: Tensor

    @classmethod
    def of(cls, labels: Tensor, vocab: int) -> "_Labels":
        """Check the labels where looking at them costs no waiting; a GPU stops at wrong ones."""
        if labels.device.type == "cpu":
            wrong = labels[(labels < 0) | (labels >= vocab)]
            if len(wrong) > 0:
                raise ValueError(
                    f"labels must lie in [0, {vocab}) where the weight is not 0, got "
                    f"{wrong[0].item()}; give positions that do not count the weight 0."
                )
        return cls(labels)

    def chunk(self, rows: slice, buffer_CV: Tensor) -> Tensor:
        return self.labels[rows]


class _Totals:
    """The gradients of hidden states, weight and bias; empty if they are not needed."""

    def __init__(self, student: _Linear, full_vocab: int, needs: list[bool]) -> None:
        self.student = student
        self.needs = needs
        self.wanted = any(needs)
        wide = torch.promote_types(student.hidden.dtype, torch.float32)
        hidden, vocab = student.hidden, len(student.weight)

        def empty(*shape: int, need: bool) -> Tensor:
            return hidden.new_empty(shape if need else (0,), dtype=wide)

        self.hidden = empty(*hidden.shape, need=needs[0])
        self.weight = empty(full_vocab, hidden.shape[1], need=needs[1])
        self.bias = empty(full_vocab, need=needs[2])
        # What the teacher's vocabulary lacks has no gradient; the rest is written by ``add``.
        self.weight[vocab:].zero_()
        self.bias.zero_()

    def add(self, grad_CV: Tensor, rows: slice) -> None:
        """Multiply the gradient of some rows' logits back."""
        if self.needs[0]:
            for columns, weight in self.student.pieces():
                _product(self.hidden[rows], grad_CV[:, columns], weight, add=columns.start > 0)
        vocab = grad_CV.shape[1]
        if self.needs[1]:
            hidden = self.student.hidden[rows]
            _product(self.weight[:vocab], grad_CV.T, hidden, add=rows.start > 0)
        if self.needs[2]:
            self.bias[:vocab] += grad_CV.sum(0, dtype=self.bias.dtype)


def _product(out: Tensor, a: Tensor, b: Tensor, *, add: bool = False) -> None:
    """Write ``a @ b`` to ``out``, or add it, without rounding to the type of ``a`` in between."""
    if a.dtype == out.dtype:
        torch.addmm(out, a, b, out=out) if add else torch.mm(a, b, out=out)
    elif add:
        torch.addmm(out, a, b, out_dtype=out.dtype, out=out)
    else:
        torch.mm(a, b, out_dtype=out.dtype, out=out)


@dataclass(frozen=True, slots=True)
class _Rows:
    """The rows whose weight is not 0: the others' contents, NaN included, must not matter."""

    live_N: Tensor
    kept: Tensor | None

    @classmethod
    def of(cls, weights_N: Tensor) -> "_Rows":
        live = weights_N != 0
        # Counting them would make the host wait for a device: there they are computed, as zeros.
        drop = live.device.type == "cpu" and not bool(live.all())
        return cls(live, live.nonzero().squeeze(1) if drop else None)

    def take(self, tensor: Tensor) -> Tensor:
        if self.kept is not None:
            return tensor[self.kept]
        if self.live_N.device.type == "cpu":
            return tensor
        return tensor.masked_fill(~self.live_N.view(-1, *[1] * (tensor.ndim - 1)), 0)

    def spread(self, tensor: Tensor, dim: int = 0) -> Tensor:
        """Put rows back in their places, zeros in the others."""
        if self.kept is not None:
            shape = list(tensor.shape)
            shape[dim] = len(self.live_N)
            return tensor.new_zeros(shape).index_copy_(dim, self.kept, tensor)
        if self.live_N.device.type == "cpu":
            return tensor
        shape = [1] * tensor.ndim
        shape[dim] = -1
        return tensor.masked_fill_(~self.live_N.view(shape), 0)


def _gain(dtype: torch.dtype, weights_N: Tensor) -> Tensor:
    """Return what the rows' weights are multiplied by before their gradients are rounded."""
    if dtype != torch.float16 or len(weights_N) == 0:
        return weights_N.new_ones(())
    return _FLOAT16_GAIN / weights_N.abs().amax().clamp(min=torch.finfo(torch.float32).tiny)


def _wide(*tensors: Tensor | None) -> torch.dtype:
    """Return the type of logits and sums: float64 where that is given, else float32."""
    double = any(x is not None and x.dtype == torch.float64 for x in tensors)
    return torch.float64 if double else torch.float32


def _row_function(backend: str, dtype: torch.dtype) -> Score:
    if backend == "eager" or dtype == torch.float64:  # the kernels are of float32
        return row_divergence
    from selftrain.kernels import divergence  # Triton is imported when it runs

    return divergence.row_divergence
