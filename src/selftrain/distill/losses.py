"""The distillation loss at every scored token, and what is measured beside it.

Shape letters: N scored tokens, V vocabulary.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from selftrain.distill.config import DistillConfig, Objective
from selftrain.distill.targets import Targets, TopKTargets
from selftrain.ops.divergence import divergence
from selftrain.ops.linear_divergence import linear_cross_entropy, linear_divergence
from selftrain.ops.topk_divergence import topk_divergence
from selftrain.training.learner import StepLosses
from selftrain.training.targets import HiddenTargets, LogitTargets, dense_logits

# Rows per block of the measurements are chosen so that a block's temporaries stay small.
_BLOCK = 2**19


def step_losses(
    student: LogitTargets | HiddenTargets,
    teacher: Targets | None,
    *,
    labels: Tensor,
    weights: Tensor,
    config: DistillConfig,
    kind: Objective,
    gains: Tensor | None = None,
) -> StepLosses:
    r"""Return the weighted loss of a micro-batch, and every token's measurements.

    Two models that give hidden states are compared without their logits ever lying in memory, and
    the gradient is computed beside the loss (:func:`selftrain.ops.linear_divergence`). Models whose
    vocabularies differ by padding are compared on the tokens they share, renormalised: a missing
    token is no token, where a zero logit would be a likely one.

    Args:
        student: What the student makes of the scored places; the gradient flows here.
        teacher: The same of the teacher; None where the text itself is the target.
        labels: ``[N]``, the tokens of the text.
        weights: ``[N]``, each token's factor in the loss.
        config: Settings of the divergence.
        kind: What is minimised.
        gains: ``[N]``, what the policy gradient multiplies each token's log-likelihood by; with
            them the loss is equation 5 of GKD, :math:`(1 - w) D - w A \log q(y)` with w =
            ``config.reward_weight``.
    """
    if gains is None:
        return _distances(student, teacher, labels, weights, config, kind)
    share = config.reward_weight
    reward = _text_losses(student, labels, weights * gains * share)
    text = reward.values["loss"] * gains * share
    if share == 1:
        return StepLosses(reward.objective, {**reward.values, "loss": text})
    distance = _distances(student, teacher, labels, weights * (1 - share), config, kind)
    values = {**distance.values, "distance": distance.values["loss"]}
    values["loss"] = (1 - share) * values["distance"] + text
    return StepLosses(distance.objective + reward.objective, values)


def _distances(
    student: LogitTargets | HiddenTargets,
    teacher: Targets | None,
    labels: Tensor,
    weights: Tensor,
    config: DistillConfig,
    kind: Objective,
) -> StepLosses:
    if kind == "nll":
        return _text_losses(student, labels, weights)
    assert teacher is not None, "only the likelihood of the text needs no teacher"  # noqa: S101
    options: dict[str, Any] = {
        "kind": kind,
        **config.parameters(kind),
        "temperature": config.loss_temperature,
    }
    if config.max_token_divergence is None:
        return _losses(student, teacher, weights, options, config.tail)
    with torch.no_grad():  # which tokens are beyond the bound has to be known first
        seen = _losses(student, teacher, torch.ones_like(weights), options, config.tail).values
    beyond = seen["loss"] > config.max_token_divergence
    kept = _losses(student, teacher, weights.masked_fill(beyond, 0.0), options, config.tail)
    clipped = {"loss": seen["loss"].clamp(max=config.max_token_divergence), "clipped": beyond}
    return StepLosses(kept.objective, {**seen, **clipped})


def _losses(
    student: LogitTargets | HiddenTargets,
    teacher: Targets,
    weights: Tensor,
    options: dict[str, Any],
    tail: bool,
) -> StepLosses:
    if isinstance(teacher, TopKTargets):
        return _top_k_losses(student, teacher, weights, {**options, "tail": tail})
    if isinstance(student, HiddenTargets) and isinstance(teacher, HiddenTargets):
        fused = linear_divergence(
            student.hidden, student.head, teacher.hidden, teacher.head, weights, **options
        )
        return StepLosses(fused.loss, fused.values)
    return _dense_losses(dense_logits(student), dense_logits(teacher), weights, options)


def _text_losses(
    student: LogitTargets | HiddenTargets, labels: Tensor, weights: Tensor
) -> StepLosses:
    """Return -log q of every token of the text, and the student's entropy."""
    if isinstance(student, HiddenTargets):
        fused = linear_cross_entropy(student.hidden, student.head, labels, weights)
        # A label is no teacher whose agreement would be worth a curve.
        kept = ("loss", "student_entropy")
        return StepLosses(fused.loss, {name: fused.values[name] for name in kept})
    logits = dense_logits(student).float()
    loss = F.cross_entropy(logits, labels, reduction="none")
    with torch.no_grad():
        log_q = torch.log_softmax(logits, -1)
        entropy = _entropy(log_q.exp(), log_q)
    return StepLosses((loss * weights).sum(), {"loss": loss, "student_entropy": entropy})


def _dense_losses(
    student_NV: Tensor, teacher_NV: Tensor, weights: Tensor, options: dict[str, Any]
) -> StepLosses:
    shared = min(student_NV.shape[-1], teacher_NV.shape[-1])
    student_NV, teacher_NV = student_NV[..., :shared], teacher_NV[..., :shared].detach()
    loss = divergence(student_NV, teacher_NV, **options)
    temperature = options["temperature"]
    values = agreement(student_NV, teacher_NV, temperature=temperature)
    counted = loss.masked_fill(weights == 0, 0.0)  # an infinite one, beyond the bound
    return StepLosses((counted * weights).sum(), {"loss": loss, **values})


def _top_k_losses(
    student: LogitTargets | HiddenTargets,
    teacher: TopKTargets,
    weights: Tensor,
    options: dict[str, Any],
) -> StepLosses:
    """Return the divergence from a teacher of whom only the likeliest tokens are known."""
    if options["temperature"] != 1:
        raise ValueError(
            f"loss_temperature={options['temperature']} needs the teacher's whole law, and this "
            "one gives its likeliest tokens only; leave it at 1, or keep hidden states "
            '(write_teacher_cache with kind="hidden").'
        )
    logits_NV = dense_logits(student)
    loss = topk_divergence(logits_NV, teacher.token_ids, teacher.log_probs, **options)
    with torch.no_grad():
        log_q = torch.log_softmax(logits_NV.float() / options["temperature"], -1)
        best = teacher.token_ids.gather(-1, teacher.log_probs.argmax(-1, keepdim=True))[:, 0]
        values = {
            "top1_agreement": (log_q.argmax(-1) == best).float(),
            "student_entropy": _entropy(log_q.exp(), log_q),
        }
    counted = loss.masked_fill(weights == 0, 0.0)  # an infinite one, beyond the bound
    return StepLosses((counted * weights).sum(), {"loss": loss, **values})


@torch.no_grad()
def agreement(
    student_logits: Tensor, teacher_logits: Tensor, *, temperature: float = 1.0
) -> dict[str, Tensor]:
    r"""Return how well the two models agree at every token, at the loss's temperature.

    Args:
        student_logits: ``[N, V]``.
        teacher_logits: ``[N, V]``.
        temperature: Divides both.

    Returns:
        Each ``[N]``: ``acceptance`` :math:`= \sum_v \min(p_v, q_v)`, the rate at which speculative
        decoding would accept the student's token (DistillSpec, arXiv 2310.08461);
        ``top1_agreement``, whether the student's favourite token is (one of) the teacher's;
        ``student_entropy`` and ``teacher_entropy`` in nats.
    """
    rows = max(1, _BLOCK // max(1, student_logits.shape[-1]))
    parts = [
        _agreement(student.float() / temperature, teacher.float() / temperature)
        for student, teacher in zip(
            student_logits.split(rows), teacher_logits.split(rows), strict=True
        )
    ]
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def _agreement(student_NV: Tensor, teacher_NV: Tensor) -> dict[str, Tensor]:
    log_q = torch.log_softmax(student_NV, -1)
    log_p = torch.log_softmax(teacher_NV, -1)
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
