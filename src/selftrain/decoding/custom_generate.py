"""Speculative decoding behind ``model.generate(..., custom_generate=...)`` of transformers."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import GenerationConfig, PreTrainedModel
from transformers.generation import GenerateDecoderOnlyOutput
from transformers.generation.streamers import BaseStreamer

from selftrain.decoding.params import SamplingParams
from selftrain.decoding.processing import WARPERS, Processor
from selftrain.decoding.streaming import Sink, sink_of

if TYPE_CHECKING:
    from selftrain.decoding.speculative import SpeculativeDecoder

# These ask for what a block does not keep.
_OUTPUTS = ("output_scores", "output_logits", "output_attentions", "output_hidden_states")
# What generate hands on in any case, and what follows from the mask or changes no output.
_HARMLESS = (
    "past_key_values",
    "position_ids",
    "use_cache",
    "logits_to_keep",
    "tokenizer",
    "synced_gpus",
    "output_attentions",
    "output_hidden_states",
)
_CRITERIA = ("MaxLengthCriteria", "EosTokenCriteria", "StopStringCriteria")


def as_custom_generate(
    decoder: "SpeculativeDecoder", *, streamer: BaseStreamer | Sink | None = None
) -> Callable[..., Any]:
    """Return the decoding loop that ``generate`` of transformers takes as ``custom_generate``.

    ``generate`` prepares as always: generation config, processors, stopping criteria. What cannot
    be honoured exactly is refused. A stop string is cut off here, where transformers keeps it.
    Of its arguments ``generate`` keeps ``streamer`` and ``tokenizer`` from the loop: the streamer
    is given here, and stop strings as a ``StopStringCriteria``.
    """
    own_streamer = streamer

    def generate(
        model: PreTrainedModel,
        input_ids: Tensor,
        logits_processor: Sequence[Processor] | None = None,
        stopping_criteria: Sequence[Any] | None = None,
        generation_config: GenerationConfig | None = None,
        streamer: BaseStreamer | None = None,
        **kwargs: Any,
    ) -> Tensor | GenerateDecoderOnlyOutput:
        if model is not decoder.target:
            raise ValueError(
                "custom_generate was made for another model; call generate of decoder.target."
            )
        # Named, it would be taken for an argument of this loop, and kept from the preparations.
        attention_mask = kwargs.pop("attention_mask", None)
        config = generation_config or model.generation_config
        _check(config, kwargs, attention_mask)
        processors, params = _laws(config, list(logits_processor or ()))
        if streamer is not None:  # it has been given the prompt already
            sink, finish = _sink(streamer, len(input_ids)), streamer.end
        elif own_streamer is not None:
            sink, finish = sink_of(own_streamer, input_ids)
        else:
            sink, finish = None, None
        output = decoder._decode(
            input_ids,
            attention_mask=attention_mask,
            params=SamplingParams(
                max_new_tokens=config.max_length - input_ids.shape[1],
                stop=_stop_strings(list(stopping_criteria or ())),
                **params,
            ),
            eos_token_ids=_eos(config),
            processors=processors,
            # generate made its processors for padded rows, and counts from their beginning.
            contexts=input_ids.tolist(),
            pad_token_id=config.pad_token_id,
            sink=sink,
        )
        if finish is not None:
            finish()
        if getattr(config, "return_dict_in_generate", False):
            return GenerateDecoderOnlyOutput(sequences=output.sequences)  # pyrefly: ignore
        return output.sequences

    return generate


def _check(config: GenerationConfig, kwargs: dict[str, Any], attention_mask: Tensor | None) -> None:
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
    unknown = [k for k, value in kwargs.items() if value is not None and k not in _HARMLESS]
    if unknown:
        raise ValueError(f"{unknown[0]} is not passed on to the models; leave it out.")
    positions = kwargs.get("position_ids")
    if positions is not None:
        mask = torch.ones_like(positions) if attention_mask is None else attention_mask.long()
        if not torch.equal((mask.cumsum(-1) - 1) * mask, positions * mask):
            raise ValueError("position_ids must count each row's tokens from 0; leave them out.")


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
