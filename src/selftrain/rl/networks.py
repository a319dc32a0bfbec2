"""The encoder that an agent takes where none is given."""

import math

from gymnasium.spaces import Box
from torch import nn

from selftrain.nn.mlp import MLPEncoder
from selftrain.nn.nature import NatureEncoder

_LEAST_SIDE = 36  # of images that the convolutions of DQN fit into


def default_encoder(space: Box, *, stack: int) -> nn.Module:
    """Return the convolutions of DQN for gray frames, and two linear layers for all that is small.

    Args:
        space: Of single observations.
        stack: How many the network sees at once.

    Raises:
        ValueError: If neither fits: give an encoder then.
    """
    shape = space.shape
    is_frame = len(shape) == 2 and space.dtype.kind in "ui"
    if is_frame and min(shape) >= _LEAST_SIDE:
        return NatureEncoder((stack, *shape))
    if len(shape) <= 1 or max(shape) < _LEAST_SIDE:
        return MLPEncoder(stack * math.prod(shape))
    raise ValueError(
        f"there is no default encoder for observations of shape {shape}; give one, such as "
        "encoder=ImpalaEncoder((channels, height, width)), which takes images of any size."
    )
