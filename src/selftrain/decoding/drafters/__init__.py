"""What proposes tokens for the target to verify."""

from selftrain.decoding.drafters.layers import LayerDrafter, first_layers
from selftrain.decoding.drafters.model import ModelDrafter
from selftrain.decoding.drafters.ngram import NGramDrafter
from selftrain.decoding.drafters.protocol import (
    Draft,
    Drafter,
    DraftSession,
    Pick,
    Rows,
    Setting,
)
from selftrain.decoding.drafters.tree import TreeDrafter
from selftrain.decoding.drafters.vocabulary import VocabularyDrafter

__all__ = [
    "Draft",
    "DraftSession",
    "Drafter",
    "LayerDrafter",
    "ModelDrafter",
    "NGramDrafter",
    "Pick",
    "Rows",
    "Setting",
    "TreeDrafter",
    "VocabularyDrafter",
    "first_layers",
]
