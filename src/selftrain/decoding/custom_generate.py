"""Speculative decoding behind ``model.generate(..., custom_generate=...)`` of transformers."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import GenerationConfig, PreTrainedModel, RepetitionPenaltyLogitsProcessor
from transformers.generation import GenerateDecoderOnlyOutput
from transformers.generation.streamers import BaseStreamer

from selftrain.decoding.params import SamplingParams
from selftrain.decoding.processing import WARPERS, Processor

if TYPE_CHECKING:
    from selftrain.decoding.speculative import SpeculativeDecoder

# These ask for what a block does not keep.
_OUTPUTS = ("output_scores", "output_logits", "output_attentions", "output_hidden_states")
_CRITERIA = ("MaxLengthCriteria", "EosTokenCriteria", "StopStringCriteria")


def as_custom_generate(decoder: "SpeculativeDecoder") -> Callable[..., Any]:
    """Return the decoding loop that ``generate`` of transformers takes as ``custom_generate``.

    ``generate`` prepares as always: generation config, processors, stopping criteria. What cannot
    be honoured exactly is refused. A stop string is cut off here, where transformers keeps it.
    """

    def generate(
        model: PreTrainedModel,
        input_ids: Tensor,
        logits_processor: Sequence[Processor] | None = None,
        stopping_criteria: Sequence[Any] | None = None,
        generation_config: GenerationConfig | None = None,
        streamer: BaseStreamer | None = None,
        **kwargs: Any,  # a name for attention_mask here would have transformers pass it twice
    ) -> Tensor | GenerateDecoderOnlyOutput:
        if model is not decoder.target:
            raise ValueError(
                "custom_generate was made for another model; call generate of decoder.target."
            )
        config = generation_config or model.generation_config
        _check(config, kwargs)
        mask = kwargs.get("attention_mask")
        given = [_for_single_rows(p, mask) for p in logits_processor or ()]
        processors, params = _laws(config, given)
        output = decoder._decode(  # the streamer has been given the prompt already
            input_ids,
            attention_mask=mask,
            params=SamplingParams(
                max_new_tokens=config.max_length - input_ids.shape[1],
                stop=_stop_strings(list(stopping_criteria or ())),
                **params,
            ),
            eos_token_ids=_eos(config),
            processors=processors,
            sink=None if streamer is None else _sink(streamer, len(input_ids)),
        )
        if streamer is not None:
            streamer.end()
        if getattr(config, "return_dict_in_generate", False):
            return GenerateDecoderOnlyOutput(sequences=output.sequences)  # pyrefly: ignore
        return output.sequences

    return generate


def _check(config: GenerationConfig, kwargs: dict[str, Any]) -> None:
    asked = [name for name in _OUTPUTS if getattr(config, name, False)]
    if asked:
        raise ValueError(f"speculative decoding keeps no {asked[0]}; leave it out.")
    if (config.num_beams or 1) > 1:
        raise ValueError(f"num_beams={config.num_beams}: speculative decoding has no beams; use 1.")
    if kwargs.get("encoder_outputs") is not None:
        raise ValueError("encoder-decoder models go through SpeculativeDecoder.generate itself.")
    cache = kwargs.get("past_key_values")
    if cache is not None and cache.get_seq_length() > 0:
        raise ValueError("past_key_values holds tokens already; pass the whole prompt instead.")


def _for_single_rows(processor: Processor, mask: Tensor | None) -> Processor:
    """Return the processor as it is for a row by itself, without padding."""
    ignored = getattr(processor, "prompt_ignore_length", None)
    if not isinstance(ignored, Tensor):
        return processor
    # What generate itself passes is the padding before each row.
    if mask is None or not torch.equal(ignored.cpu(), (mask != 0).int().argmax(1).cpu()):
        raise ValueError(
            f"a {type(processor).__name__} has a prompt_ignore_length for each row; rows are "
            "processed one by one, so pass one integer."
        )
    return RepetitionPenaltyLogitsProcessor(processor.penalty)  # pyrefly: ignore


def _laws(
    config: GenerationConfig, processors: list[Processor]
) -> tuple[list[Processor], dict[str, Any]]:
    """Split processors into those that depend on the text and what SamplingParams can say."""
    if not config.do_sample:
        return processors, {"temperature": 0.0}
    names = [type(p).__name__ for p in processors]
    first = next((i for i, name in enumerate(names) if name in WARPERS), len(names))
    warpers = names[first:]
    if warpers != [name for name in WARPERS if name in warpers]:
        return processors, {}  # something comes between: all of it stays, in its order
    made = dict(zip(warpers, processors[first:], strict=True))
    params = {
        key: getattr(made[name], key)
        for name, key in zip(WARPERS, ("temperature", "top_k", "top_p", "min_p"), strict=True)
        if name in made
    }
    return processors[:first], params


def _stop_strings(criteria: list[Any]) -> tuple[str, ...]:
    stop: list[str] = []
    for criterion in criteria:
        name = type(criterion).__name__
        if name not in _CRITERIA:
            raise ValueError(
                f"stopping_criteria holds a {name}, which looks at one token at a time; a block "
                f"brings several. Only {', '.join(_CRITERIA)} are honoured."
            )
        if name == "StopStringCriteria":
            stop += criterion.stop_strings
    return tuple(stop)


def _eos(config: GenerationConfig) -> list[int]:
    ids = config.eos_token_id
    if ids is None:
        return []
    return [ids] if isinstance(ids, int) else list(ids)


def _sink(streamer: BaseStreamer, num_rows: int) -> Callable[[int, list[int]], None]:
    if num_rows > 1:
        raise ValueError(f"streamer follows one row, but there are {num_rows}.")
    return lambda row, token_ids: streamer.put(torch.tensor(token_ids))
