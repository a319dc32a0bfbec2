"""Logits processors of transformers inside a block, each place with its own prefix."""

from collections.abc import Callable, Sequence

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


def check_processors(
    processors: Sequence[Processor] | None,
) -> tuple[Processor, ...]:
    """Return the processors, none if there are none.

    Raises:
        ValueError: If one keeps state between calls, or repeats what SamplingParams says.
        TypeError: If one is not callable.
    """
    for processor in processors or ():
        name = type(processor).__name__
        if not callable(processor):
            raise TypeError(f"logits_processor holds a {name}, which is not callable.")
        check_stateless(processor)
        if name in WARPERS:
            raise ValueError(
                f"logits_processor holds a {name}; say it in SamplingParams instead "
                "(temperature, top_k, top_p, min_p), which apply after all processors."
            )
    return tuple(processors or ())


def check_stateless(processor: Processor) -> None:
    """Raise ``ValueError`` if a processor keeps state between calls."""
    name = type(processor).__name__
    if name in _STATEFUL:
        raise ValueError(
            f"logits_processor holds a {name}, which keeps state from token to token; in a "
            "block several tokens are scored at once and some are taken back. Use plain "
            "decoding for it."
        )


def process(
    processors: Sequence[Processor], logits: Tensor, texts: Sequence[Sequence[int]]
) -> Tensor:
    """Apply processors to logits of consecutive places, each seeing the tokens before it alone.

    Rows are taken one by one: lengths differ, and padding is no token of theirs.

    Args:
        processors: Applied in their order.
        logits: Raw logits ``[batch, places, vocab]``.
        texts: Each row's tokens up to the one before the last place.
    """
    scores = logits if logits.dtype == torch.float64 else logits.float()
    num_places = logits.shape[1]
    rows = []
    for row, text in zip(scores, texts, strict=True):
        ids = torch.tensor([list(text)], device=logits.device).clamp(min=0)
        first = ids.shape[1] - num_places + 1
        places = []
        for place in range(num_places):
            scored = row[place : place + 1]
            for processor in processors:
                scored = processor(ids[:, : first + place], scored)
            places.append(scored)
        rows.append(torch.cat(places))
    return torch.stack(rows)
