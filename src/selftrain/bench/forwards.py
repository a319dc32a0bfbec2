"""How the models' forwards are done: as they come, or leaner where the user asks for it."""

from collections.abc import Callable, Mapping
from typing import Any

from transformers import PreTrainedModel

from selftrain._core.checks import check_choice
from selftrain.nn.packed import pack_weights

FORWARDS: Mapping[str, Callable[[Any], Any]] = {
    "eager": lambda model: model,
    "packed": pack_weights,
}
"""What each name makes of a model. The peers always get the model as it is."""


def prepare(model: PreTrainedModel, name: str) -> PreTrainedModel:
    """Return what our decoder should drive in place of ``model``; the model itself is unchanged.

    Args:
        model: A target or a draft.
        name: One of :data:`FORWARDS`.

    Raises:
        ValueError: If there is no such way.
    """
    check_choice("forward", name, FORWARDS)
    return FORWARDS[name](model)
