"""A user's own function as a teacher.

Shape letters: B batch, T time, N scored tokens, V vocabulary, H hidden size, K tokens kept.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor

from selftrain.distill.targets import Targets, TopKTargets
from selftrain.training.batch import MicroBatch
from selftrain.training.targets import HiddenTargets, LogitTargets

if TYPE_CHECKING:
    from selftrain.ops.linear_divergence import Head

_FORMS = (
    "logits [N, V], a pair (token_ids [N, K], log_probs [N, K]), a pair (hidden [N, H], head), or "
    "LogitTargets, TopKTargets or HiddenTargets"
)
# Log-probabilities may exceed 0 by rounding, half precision included, but not by more.
_ROUNDING = 0.02


class CallableTeacher:
    """Asks a function what the teacher thinks of the scored tokens.

    The function is called as ``fn(input_ids, attention_mask, positions)``, without gradients:
    ``[B, T]`` token ids and mask, padded on the right, and the ``[N]`` places in the *flattened*
    ``[B * T]`` at which scored tokens are predicted, so that
    ``logits.flatten(0, 1)[positions]`` is an answer. For encoder-decoder students the ids are the
    encoder's, ``decoder_input_ids=`` is passed as well, and the places are the decoder's.

    It returns one row for each place: logits ``[N, V]``, or a pair ``(token_ids, log_probs)`` of
    the most likely tokens ``[N, K]``, or a pair ``(hidden, head)`` of hidden states ``[N, H]`` and
    a :class:`~selftrain.ops.linear_divergence.Head`.

    Args:
        fn: The function.

    Raises:
        TypeError: If ``fn`` cannot be called.
    """

    def __init__(self, fn: Callable[..., Any]) -> None:
        if not callable(fn):
            raise TypeError(
                f"fn must be a function of (input_ids, attention_mask, positions), got {fn!r}. "
                "A model is a teacher as it is: pass it to the Distiller itself."
            )
        self._fn = fn
        self._checked_values = False

    @torch.no_grad()
    def targets(self, batch: MicroBatch) -> Targets:
        """Return the function's answer as targets.

        Raises:
            TypeError: If the answer is of none of the forms.
            ValueError: If it has another number of rows than the batch has scored tokens, or
                log-probabilities that are none (looked at in the first call only, for that waits
                for the device).
        """
        extra = {k: v for k, v in batch.inputs.items() if k == "decoder_input_ids"}
        answer = self._fn(
            batch.inputs["input_ids"], batch.inputs["attention_mask"], _flat(batch), **extra
        )
        targets = _as_targets(answer)
        self._check(targets, batch)
        return targets

    def _check(self, targets: Targets, batch: MicroBatch) -> None:
        first = _first_tensor(targets)
        num_scored = len(batch.labels)
        if len(first) != num_scored:
            raise ValueError(
                f"the teacher's function returned {len(first)} rows for {num_scored} positions; it "
                "must return one for each, in their order: logits.flatten(0, 1)[positions]."
            )
        if first.device != batch.labels.device:
            raise ValueError(
                f"the teacher's function returned tensors on {first.device}, but the batch is on "
                f"{batch.labels.device}; return them there."
            )
        if isinstance(targets, TopKTargets) and not self._checked_values and num_scored:
            _check_log_probs(targets.log_probs)
            self._checked_values = True


def _flat(batch: MicroBatch) -> Tensor:
    """Return the places within ``[B * T]``; the batch counts them from its first scored step."""
    return batch.positions + (batch.rows + 1) * batch.first


def _as_targets(answer: Any) -> Targets:
    if isinstance(answer, (LogitTargets, HiddenTargets, TopKTargets)):
        return answer
    if isinstance(answer, Tensor):
        return LogitTargets(answer)
    if isinstance(answer, tuple) and len(answer) == 2 and isinstance(answer[0], Tensor):
        if isinstance(answer[1], Tensor):
            return TopKTargets(*answer)
        if isinstance(getattr(answer[1], "weight", None), Tensor):
            return HiddenTargets(answer[0], cast("Head", answer[1]))
    raise TypeError(
        f"the teacher's function returned {type(answer).__name__}; it must return {_FORMS}."
    )


def _first_tensor(targets: Targets) -> Tensor:
    match targets:
        case LogitTargets(logits):
            return logits
        case HiddenTargets(hidden, _):
            return hidden
        case TopKTargets(token_ids, _):
            return token_ids


def _check_log_probs(log_probs_NK: Tensor) -> None:
    total = log_probs_NK.float().logsumexp(-1).amax().item()
    if not total <= _ROUNDING:  # a NaN is wrong as well
        raise ValueError(
            f"the teacher's log_probs sum to a mass of exp({total:.3g}) at one position, and a "
            "mass is at most 1. Return natural log-probabilities: logits.log_softmax(-1).topk(k)."
        )
