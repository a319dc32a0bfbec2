"""Settings of value learning from an engine's labels."""

from dataclasses import dataclass
from typing import Literal

from selftrain._core.checks import check_choice, check_int, check_range

Predicts = Literal["action_value", "state_value"]
"""What a network predicts: the value of a move, or of a position."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ChessConfig:
    """Network and training, all that heads have in common when they are compared."""

    predicts: Predicts = "action_value"
    """Whether the network gives values of moves or of positions."""
    mover_view: bool = True
    """Whether the network sees every position as if it were white's turn, colours and ranks
    exchanged where it is black's; the papers leave that to be learnt."""
    num_layers: int = 2
    """Blocks of the transformer."""
    width: int = 64
    """Features of a token."""
    num_heads: int = 4
    """Heads of attention; they divide the width."""
    num_steps: int = 2000
    """Optimizer steps."""
    batch_size: int = 128
    """Positions and moves in a step, drawn with replacement."""
    learning_rate: float = 1e-3
    """Of Adam."""
    warmup_steps: int = 100
    """Steps over which the learning rate rises from 0; it falls to 0 linearly behind them."""
    max_grad_norm: float = 1.0
    """Norm to which gradients are clipped."""
    seed: int = 0
    """Of weights and batches."""

    def __post_init__(self) -> None:
        check_choice("predicts", self.predicts, ("action_value", "state_value"))
        for name in ("num_layers", "width", "num_heads", "num_steps", "batch_size"):
            check_int(name, getattr(self, name), low=1)
        check_int("warmup_steps", self.warmup_steps, low=0)
        check_range("learning_rate", self.learning_rate, low=0.0, low_open=True)
        check_range("max_grad_norm", self.max_grad_norm, low=0.0, low_open=True)
        if self.width % self.num_heads:
            raise ValueError(
                f"width is {self.width}, which {self.num_heads} heads cannot share; take a "
                "multiple of num_heads."
            )

    @classmethod
    def paper_9m(cls) -> "ChessConfig":
        """Return the smallest network of arXiv 2402.04494: 8 blocks of width 256.

        The size is the paper's; steps, batch and learning rate were not checked against it.
        """
        return cls(
            mover_view=False,
            num_layers=8,
            width=256,
            num_heads=8,
            num_steps=10_000_000,
            batch_size=4096,
            learning_rate=1e-4,
        )
