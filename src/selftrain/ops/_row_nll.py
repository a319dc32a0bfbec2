"""The dense part of :func:`selftrain.ops.linear_cross_entropy`, by eager torch.

Shape letters: C rows of a chunk, V vocabulary.
"""

import torch
from torch import Tensor

from selftrain.ops._row_divergence import VALUES, LogitMap, entropy, row_blocks

NLL_VALUES = VALUES[:4]
"""A label has no entropy of its own; it is the teacher in the other measures."""


def row_nll(
    student_CV: Tensor,
    labels_C: Tensor,
    weights_C: Tensor,
    *,
    temperature: float,
    student_scale: float,
    student_softcap: float | None,
    grad_dtype: torch.dtype | None,
    measure: bool,
) -> tuple[dict[str, Tensor], Tensor | None]:
    """Return what each row has, and the gradient of the weighted sum of ``-log q(label)``.

    The arguments are those of :func:`selftrain.ops._row_divergence.row_divergence`, with labels in
    the place of the teacher's logits.
    """
    grad_CV = None
    if grad_dtype is not None:
        same = grad_dtype == student_CV.dtype
        grad_CV = student_CV if same else torch.empty_like(student_CV, dtype=grad_dtype)
    names = NLL_VALUES if measure else NLL_VALUES[:1]
    values = student_CV.new_empty((len(names), len(student_CV)))
    logit_map = LogitMap(student_scale, student_softcap)
    weights_C = weights_C * (student_scale / temperature)
    for rows in row_blocks(student_CV):
        s, labels_R1 = student_CV[rows], labels_C[rows, None]
        slope = logit_map.apply_(s, temperature, grad_CV is not None)
        log_q = torch.log_softmax(s, -1)
        log_likelihood = log_q.gather(-1, labels_R1).squeeze(-1)
        q = log_q.exp() if measure or grad_CV is not None else log_q
        measures = []
        if measure:
            agreement = (log_q.argmax(-1, keepdim=True) == labels_R1).squeeze(-1).to(q.dtype)
            measures = [log_likelihood.exp(), agreement, entropy(q, log_q)]
        torch.stack([-log_likelihood, *measures], out=values[:, rows])
        if grad_CV is not None:
            grad = q.scatter_add_(-1, labels_R1, -torch.ones_like(labels_R1, dtype=q.dtype))
            grad = grad if slope is None else grad.mul_(slope)
            torch.mul(grad, weights_C[rows, None], out=grad_CV[rows])
    return dict(zip(names, values.unbind(), strict=True)), grad_CV
