"""Logits processors of transformers inside a block, each place with its own prefix."""

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

Processor = Callable[[Tensor, Tensor], Tensor]
"""A processor of transformers, or any function of (input_ids, scores) that returns new scores."""

# What SamplingParams says already, in its order.
WARPERS = ("TemperatureLogitsWarper", "TopKLogitsWarper", "TopPLogitsWarper", "MinPLogitsWarper")
# These keep state from call to call, so they can neither look ahead nor take a step back.
_STATEFUL = (
    "UnbatchedClassifierFreeGuidanceLogitsProcessor",
    "SynthIDTextWatermarkLogitsProcessor",
)

# These are told rows by their place in a batch, and here each row comes alone.
_BY_ROW = (
    "PrefixConstrainedLogitsProcessor",
    "EncoderRepetitionPenaltyLogitsProcessor",
    "EncoderNoRepeatNGramLogitsProcessor",
)


def check_processors(
    processors: Sequence[Processor] | None,
) -> tuple[Processor, ...]:
    """Return the processors, none if there are none.

    Raises:
        ValueError: If one repeats what SamplingParams says.
        TypeError: If one is not callable, or they are no sequence.
    """
    if processors is not None and not isinstance(processors, Sequence):
        raise TypeError(
            f"logits_processor must be a list of processors, got {type(processors).__name__}."
        )
    for processor in processors or ():
        name = type(processor).__name__
        if not callable(processor):
            raise TypeError(f"logits_processor holds a {name}, which is not callable.")
        if name in WARPERS:
            raise ValueError(
                f"logits_processor holds a {name}; say it in SamplingParams instead "
                "(temperature, top_k, top_p, min_p), which apply after all processors."
            )
    return tuple(processors or ())


def check_scope(processors: Sequence[Processor], num_rows: int) -> None:
    """Raise ``ValueError`` if a processor needs more than the tokens of one row before a place."""
    for processor in processors:
        name = type(processor).__name__
        if name in _STATEFUL:
            raise ValueError(
                f"logits_processor holds a {name}, which keeps state from token to token; in a "
                "block several tokens are scored at once and some are taken back. Use plain "
                "decoding for it."
            )
        if name in _BY_ROW and num_rows > 1:
            raise ValueError(
                f"logits_processor holds a {name}, which treats rows by their number, and here "
                f"each of the {num_rows} is processed alone. Pass one row at a time."
            )


def process(
    processors: Sequence[Processor],
    logits: Tensor,
    texts: Sequence[Sequence[int]],
    *,
    rows: Sequence[int] | None = None,
) -> Tensor:
    """Apply processors to logits of consecutive places, each seeing the tokens before it alone.

    Rows are taken one by one: lengths differ, and padding is no token of theirs. Behind a void
    token (-1) nothing is processed: no such text exists, and nobody looks.

    Args:
        processors: Applied in their order.
        logits: Raw logits ``[batch, places, vocab]``.
        texts: Each row's tokens up to the one before the last place.
        rows: Their numbers, for processors that hold a length for each row.
    """
    scores = logits if logits.dtype == torch.float64 else logits.float()
    num_places = logits.shape[1]
    processed = []
    for index, (row, text) in enumerate(zip(scores, texts, strict=True)):
        own = processors if rows is None else [_of_row(p, rows[index]) for p in processors]
        ids = torch.tensor([list(text)], device=logits.device).clamp(min=0)
        first = ids.shape[1] - num_places + 1
        places = []
        for place in range(num_places):
            if place and text[first + place - 1] < 0:
                places.append(row[place:])
                break
            scored = row[place : place + 1]
            for processor in own:
                scored = processor(ids[:, : first + place], scored)
            places.append(scored)
        processed.append(torch.cat(places))
    return torch.stack(processed)


def _of_row(processor: Processor, row: int) -> Processor:
    """Return the processor for one row: a repetition penalty may hold a length for each."""
    lengths = getattr(processor, "prompt_ignore_length", None)
    if not isinstance(lengths, Tensor):
        return processor
    own: Any = copy.copy(processor)
    own.prompt_ignore_length = lengths[row : row + 1]
    return own
