"""What proposes tokens for the target to verify."""

from selftrain.decoding.drafters.model import ModelDrafter
from selftrain.decoding.drafters.protocol import (
    Draft,
    Drafter,
    DraftSession,
    Pick,
    Rows,
    Setting,
)

__all__ = ["Draft", "DraftSession", "Drafter", "ModelDrafter", "Pick", "Rows", "Setting"]
