"""What proposes tokens for the target to verify."""

from selftrain.decoding.drafters.model import ModelDraft
from selftrain.decoding.drafters.protocol import (
    Draft,
    Drafter,
    DraftSession,
    Pick,
    Rows,
    Setting,
)

__all__ = ["Draft", "DraftSession", "Drafter", "ModelDraft", "Pick", "Rows", "Setting"]
