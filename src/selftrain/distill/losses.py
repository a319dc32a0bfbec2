"""The distillation loss at every scored token, and what is measured beside it.

Shape letters: N scored tokens, V vocabulary.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from selftrain.distill.config import DistillConfig
from selftrain.ops.divergence import divergence

# Rows per block of the measurements are chosen so that a block's temporaries stay small.
_BLOCK = 2**19


def token_losses(
    student_logits: Tensor, teacher_logits: Tensor, config: DistillConfig
) -> dict[str, Tensor]:
    """Return the divergence at every token, with :func:`agreement` of the two models.

    Models whose vocabularies differ by padding are compared on the tokens they share,
    renormalised: a missing token is no token, where a zero logit would be a likely one.

    Args:
        student_logits: ``[N, V_student]``; the gradient flows here.
        teacher_logits: ``[N, V_teacher]``.
        config: Which divergence.

    Returns:
        ``loss`` and the measurements, each ``[N]`` in float32.
    """
    shared = min(student_logits.shape[-1], teacher_logits.shape[-1])
    student_logits = student_logits[..., :shared]
    teacher_logits = teacher_logits[..., :shared].detach()
    loss = divergence(
        student_logits,
        teacher_logits,
        kind=config.divergence,  # pyrefly: ignore[bad-argument-type]
        beta=0.5 if config.beta is None else config.beta,
        scale=config.jsd_scale,
        temperature=config.loss_temperature,
    )
    return {"loss": loss, **agreement(student_logits, teacher_logits)}


def text_losses(student_logits: Tensor, labels: Tensor) -> dict[str, Tensor]:
    """Return -log q of every token of the text, and the student's entropy.

    Args:
        student_logits: ``[N, V]``.
        labels: ``[N]``, the tokens.
    """
    loss = F.cross_entropy(student_logits.float(), labels, reduction="none")
    with torch.no_grad():
        log_q = torch.log_softmax(student_logits.float(), -1)
        return {"loss": loss, "student_entropy": _entropy(log_q.exp(), log_q)}


@torch.no_grad()
def agreement(student_logits: Tensor, teacher_logits: Tensor) -> dict[str, Tensor]:
    r"""Return how well the two models agree at every token, at temperature 1.

    Args:
        student_logits: ``[N, V]``.
        teacher_logits: ``[N, V]``.

    Returns:
        Each ``[N]``: ``acceptance`` :math:`= \sum_v \min(p_v, q_v)`, the rate at which speculative
        decoding would accept the student's token (DistillSpec, arXiv 2310.08461);
        ``top1_agreement``, whether the student's favourite token is (one of) the teacher's;
        ``student_entropy`` and ``teacher_entropy`` in nats.
    """
    rows = max(1, _BLOCK // max(1, student_logits.shape[-1]))
    parts = [
        _agreement(student, teacher)
        for student, teacher in zip(
            student_logits.split(rows), teacher_logits.split(rows), strict=True
        )
    ]
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def _agreement(student_NV: Tensor, teacher_NV: Tensor) -> dict[str, Tensor]:
    log_q = torch.log_softmax(student_NV.float(), -1)
    log_p = torch.log_softmax(teacher_NV.float(), -1)
    top = log_q.argmax(-1, keepdim=True)
    top1_agreement = log_p.gather(-1, top)[:, 0] == log_p.amax(-1)
    q, p = log_q.exp(), log_p.exp()
    return {
        "acceptance": torch.minimum(p, q).sum(-1),
        "top1_agreement": top1_agreement.float(),
        "student_entropy": _entropy(q, log_q),
        "teacher_entropy": _entropy(p, log_p),
    }


def _entropy(probs: Tensor, log_probs: Tensor) -> Tensor:
    """Return the entropy in nats; overwrites ``log_probs``. The clamp makes 0 * -inf a 0."""
    return -log_probs.clamp_(min=-1e30).mul_(probs).sum(-1)
