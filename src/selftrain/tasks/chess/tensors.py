"""Labelled positions as arrays, for training and measuring."""

from dataclasses import dataclass

import datasets
import torch
from torch import Tensor

from selftrain._core.checks import check_not_empty
from selftrain.tasks.chess.tokens import encode_fens


@dataclass(frozen=True, slots=True)
class PositionTensors:
    """N positions and their M legal moves, those of a position beside each other."""

    tokens: Tensor
    """``[N, 77]``, uint8."""
    values: Tensor
    """``[N]``, float32: probability that the side to move wins."""
    moves: Tensor
    """``[M]``, int64: numbers in ``MOVES``."""
    move_values: Tensor
    """``[M]``, float32."""
    owners: Tensor
    """``[M]``, int64: the position that a move belongs to, in order."""

    @property
    def num_moves(self) -> Tensor:
        """How many moves each position has, ``[N]``."""
        return torch.bincount(self.owners, minlength=len(self.tokens))


def encode_positions(rows: datasets.Dataset) -> PositionTensors:
    """Return labelled positions as tensors.

    Raises:
        ValueError: If there are none, or a FEN cannot be read.
    """
    check_not_empty("rows", rows)
    table = rows.with_format("arrow")[:]
    moves, values = table["moves"].combine_chunks(), table["move_values"].combine_chunks()
    counts = torch.from_numpy(moves.value_lengths().to_numpy(zero_copy_only=False).copy())
    return PositionTensors(
        tokens=torch.from_numpy(encode_fens(table["fen"].to_pylist())),
        values=torch.from_numpy(table["value"].to_numpy().copy()),
        moves=torch.from_numpy(moves.flatten().to_numpy().copy()).long(),
        move_values=torch.from_numpy(values.flatten().to_numpy().copy()),
        owners=torch.arange(len(counts)).repeat_interleave(counts.long()),
    )
