"""Two models and our decoders of them, made once for all cases."""

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedModel

from selftrain._core.checks import check_choice
from selftrain.bench.decoders import Decoder, NumDraftTokens, VerifierName, speculative
from selftrain.decoding.speculative import SpeculativeDecoder
from selftrain.nn.packed import pack_weights


@dataclass(frozen=True, slots=True)
class Forward:
    """One way of doing the models' forwards."""

    prepare: Callable[[Any], Any] = lambda model: model
    """Gives what is driven in place of a model; the model itself stays as it is."""
    compile: bool = False
    """Whether the decoder compiles the models' steps."""


FORWARDS: Mapping[str, Forward] = {
    "eager": Forward(),
    "packed": Forward(prepare=pack_weights),
    "compiled": Forward(compile=True),
}
"""The ways that our decoders can use. The peers always get the models as they are."""


class Pair:
    """A target and a draft, and for each way of doing their forwards a decoder.

    What is expensive to make, packed weights and compiled steps, is made once.

    Args:
        target: The target model, in evaluation mode.
        draft: The draft model, in evaluation mode.
        forwards: Names in :data:`FORWARDS`; "eager" is always among them.

    Raises:
        ValueError: If there is no forward of a name.
    """

    def __init__(
        self, target: PreTrainedModel, draft: PreTrainedModel, *, forwards: Sequence[str] = ()
    ) -> None:
        self.target, self.draft = target, draft
        self.vocab_size: int = target.config.get_text_config(decoder=True).vocab_size
        self._decoders: dict[str, SpeculativeDecoder] = {}
        for name in dict.fromkeys(("eager", *forwards)):
            check_choice("forward", name, FORWARDS)
            way = FORWARDS[name]
            models = [way.prepare(model) for model in (target, draft)]
            self._decoders[name] = SpeculativeDecoder(*models, compile=way.compile)

    @property
    def forwards(self) -> list[str]:
        """The names, "eager" first."""
        return list(self._decoders)

    def decoder(
        self,
        *,
        num_draft_tokens: NumDraftTokens,
        verifier: VerifierName = "default",
        forward: str = "eager",
    ) -> Decoder:
        """Return our decoder with these settings; all share what was made once."""
        decoder = copy.copy(self._decoders[forward])
        decoder.num_draft_tokens = num_draft_tokens
        decoder.verifier = None if verifier == "default" else verifier
        return speculative(decoder)
