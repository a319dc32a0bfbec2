"""Whether two models can be distilled into one another, and what they share."""

import warnings
from dataclasses import dataclass
from typing import Any

from torch import nn
from transformers import PreTrainedTokenizerBase

_OTHER_TOKENIZERS = (
    "Models of different tokenizers cannot be compared token by token; distil through text instead "
    "(SeqKD): sample completions from the teacher and fine-tune the student on them."
)


@dataclass(frozen=True, slots=True)
class Pair:
    """What student and teacher have in common."""

    num_tokens: int
    """Token ids below this exist in both models."""
    context: int | None
    """Most tokens of prompt and completion that both can read; None: no limit is known."""


def check_pair(
    student: nn.Module,
    teacher: nn.Module | None,
    tokenizer: PreTrainedTokenizerBase,
    teacher_tokenizer: PreTrainedTokenizerBase | None,
) -> Pair:
    """Check that the teacher can teach the student, and return what they share.

    Of a teacher that is no model in this process (None) only the tokenizer can be checked.

    Raises:
        ValueError: If they are one model or share parameters, are of different architectures
            (decoder-only and encoder-decoder), or differ in their tokens.
    """
    models = [student] if teacher is None else [student, teacher]
    shared = set.intersection(*({id(p) for p in model.parameters()} for model in models))
    if len(models) > 1 and (teacher is student or shared):
        raise ValueError(
            "teacher and student are the same model or share parameters, so teaching would move "
            "the target. Pass a frozen copy: copy.deepcopy(student)."
        )
    kinds = [_architecture(model) for model in models]
    if kinds[0] != kinds[-1]:
        raise ValueError(
            f"the student is {kinds[0][0]} and the teacher {kinds[1][0]} (decoder_start_token_id "
            f"{kinds[0][1]} and {kinds[1][1]}); they must read a completion alike."
        )
    _check_tokens(models, tokenizer, teacher_tokenizer)
    contexts = [c for c in map(_context, models) if c is not None]
    sizes = [s for s in map(_num_logits, models) if s is not None]
    return Pair(min(sizes, default=len(tokenizer)), min(contexts, default=None))


def freeze(teacher: nn.Module) -> None:
    """Put the teacher in evaluation mode and switch its gradients off, saying so if it had any."""
    if any(p.requires_grad for p in teacher.parameters()):
        warnings.warn(
            "the teacher's parameters required gradients and are frozen now; call "
            "teacher.requires_grad_(False) beforehand to say that this is meant.",
            stacklevel=3,
        )
    teacher.requires_grad_(False)
    teacher.eval()


def end_tokens(student: nn.Module, tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """Return the ids that end a completion: the tokenizer's and those of the generation config."""
    ids = getattr(getattr(student, "generation_config", None), "eos_token_id", None)
    listed = ids if isinstance(ids, (list, tuple)) else [ids]
    return frozenset(i for i in (*listed, tokenizer.eos_token_id) if i is not None)


def _architecture(model: nn.Module) -> tuple[str, int | None]:
    config: Any = getattr(model, "config", None)
    if getattr(config, "is_encoder_decoder", False):
        return "an encoder-decoder", config.decoder_start_token_id
    return "decoder-only", None


def _check_tokens(
    models: list[nn.Module],
    tokenizer: PreTrainedTokenizerBase,
    teacher_tokenizer: PreTrainedTokenizerBase | None,
) -> None:
    for name, model in zip(("student", "teacher"), models, strict=False):
        size = _num_logits(model)
        if size is not None and size < len(tokenizer):
            raise ValueError(
                f"the {name} scores {size} tokens, but the tokenizer has {len(tokenizer)}. "
                f"{_OTHER_TOKENIZERS}"
            )
    if teacher_tokenizer is not None:
        ours, theirs = tokenizer.get_vocab(), teacher_tokenizer.get_vocab()
        if ours != theirs:
            differing = sorted(t for t in {*ours, *theirs} if ours.get(t) != theirs.get(t))
            raise ValueError(
                f"student and teacher tokenizers differ in {len(differing)} tokens, for one "
                f"{differing[0]!r} ({ours.get(differing[0])} and {theirs.get(differing[0])}). "
                f"{_OTHER_TOKENIZERS}"
            )


def _num_logits(model: nn.Module) -> int | None:
    get_head = getattr(model, "get_output_embeddings", None)
    head = get_head() if get_head is not None else None
    if head is not None:
        return head.weight.shape[0]
    return getattr(getattr(model, "config", None), "vocab_size", None)


def _context(model: nn.Module) -> int | None:
    return getattr(getattr(model, "config", None), "max_position_embeddings", None)
