"""The decoders that are compared: ours and those of ``transformers``, behind one signature."""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers import GenerationConfig, PreTrainedModel

from selftrain._core.rng import derive
from selftrain.decoding.outcome import SpeculativeStats
from selftrain.decoding.params import SamplingParams
from selftrain.decoding.speculative import SpeculativeDecoder

Prompts = Sequence[Sequence[int]]
NumDraftTokens = int | Literal["auto"]
VerifierName = Literal["default", "token", "block", "coupled"]

SPECULATIVE = "selftrain"
PLAIN = "selftrain plain"
PEER_PLAIN = "transformers plain"
PEER_ASSISTED = "transformers assisted"


@dataclass(frozen=True, slots=True)
class Decoded:
    """What one decoder made of one batch of prompts."""

    new_tokens: list[list[int]]
    """The new tokens of each row."""
    num_target_calls: int
    """Target forwards, counted once for every row that took part."""
    stats: SpeculativeStats | None = None
    """What our decoder says of itself."""

    @property
    def num_new_tokens(self) -> int:
        """New tokens of all rows."""
        return sum(map(len, self.new_tokens))

    @property
    def block_efficiency(self) -> float:
        """Mean number of tokens that a target call gave a row."""
        return self.num_new_tokens / self.num_target_calls


Decoder = Callable[[Prompts, SamplingParams], Decoded]


def random_prompts(
    num: int, length: int, *, vocab_size: int, seed: int, round: int
) -> list[list[int]]:
    """Return prompts of random ids: the first of ``length`` tokens, the others down to half of it.

    Args:
        num: How many.
        length: Tokens of the longest, at least 1.
        vocab_size: Ids lie below it.
        seed: With ``round``, decides the ids.
        round: Every round of a benchmark has prompts of its own.
    """
    rng = torch.Generator().manual_seed(derive(seed, "prompts", round))
    lengths = [max(1, length - (row * length) // (2 * num)) for row in range(num)]
    return [torch.randint(vocab_size, (n,), generator=rng).tolist() for n in lengths]


def speculative(decoder: SpeculativeDecoder) -> Decoder:
    """Return our decoder; with "auto" its planner begins to learn anew in every call."""

    def decode(prompts: Prompts, params: SamplingParams) -> Decoded:
        ids, mask = left_padded(prompts, decoder.target.device)
        output = decoder.generate(ids, attention_mask=mask, params=params, eos_token_ids=())
        return Decoded(output.new_tokens(), output.stats.num_target_calls, output.stats)

    return decode


def peer_plain(target: PreTrainedModel) -> Decoder:
    """Return plain ``generate``, of all rows at once."""

    def decode(prompts: Prompts, params: SamplingParams) -> Decoded:
        ids, mask = left_padded(prompts, target.device)
        with _generation_config(params, target), _calls_of(target) as calls:
            output = _generate(target, ids, attention_mask=mask)
        new = output[:, ids.shape[1] :].tolist()
        return Decoded(new, calls[0] * len(prompts))

    return decode


def peer_assisted(
    target: PreTrainedModel, draft: PreTrainedModel, *, num_draft_tokens: NumDraftTokens
) -> Decoder:
    """Return ``generate(assistant_model=...)``, one row after another: it refuses batches.

    It drafts ``num_draft_tokens`` tokens in every block, whatever the draft's confidence; with
    "auto" it does what it does by default (up to 20, until the draft's confidence falls).
    """
    options = {}
    if num_draft_tokens != "auto":
        options = {
            "num_assistant_tokens": num_draft_tokens,
            "num_assistant_tokens_schedule": "constant",
            "assistant_confidence_threshold": 0.0,
        }

    def decode(prompts: Prompts, params: SamplingParams) -> Decoded:
        new = []
        with _generation_config(params, target, draft, **options), _calls_of(target) as calls:
            for prompt in prompts:
                ids = torch.tensor([list(prompt)], device=target.device)
                output = _generate(
                    target, ids, attention_mask=torch.ones_like(ids), assistant_model=draft
                )
                new.append(output[0, ids.shape[1] :].tolist())
        return Decoded(new, calls[0])

    return decode


def _generate(model: PreTrainedModel, ids: Tensor, **options: Any) -> Tensor:
    return model.generate(ids, **options)  # pyrefly: ignore[not-callable]


def left_padded(prompts: Prompts, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return ids and attention mask ``[batch, time]``, padded on the left with id 0."""
    longest = max(map(len, prompts))
    ids = [[*([0] * (longest - len(p))), *p] for p in prompts]
    mask = [[*([0] * (longest - len(p))), *([1] * len(p))] for p in prompts]
    return torch.tensor(ids, device=device), torch.tensor(mask, device=device)


@contextlib.contextmanager
def _generation_config(
    params: SamplingParams, *models: PreTrainedModel, **options: object
) -> Iterator[None]:
    """Let ``generate`` do exactly what ``params`` say, with no end of text, inside the block.

    The models' own configurations are put aside, not overridden: ``generate`` would fill in from
    them whatever is None, the end of text for one.
    """
    sampling = {}
    if not params.greedy:
        # top_k=0 is "all"; left out, 50 would be filled in.
        sampling = {
            "temperature": params.temperature,
            "top_k": params.top_k or 0,
            "top_p": params.top_p,
        }
    before = [model.generation_config for model in models]
    try:
        for model in models:
            model.generation_config = GenerationConfig(
                max_new_tokens=params.max_new_tokens,
                do_sample=not params.greedy,
                pad_token_id=0,
                eos_token_id=None,
                **sampling,
                **options,
            )
        yield
    finally:
        for model, config in zip(models, before, strict=True):
            model.generation_config = config


@contextlib.contextmanager
def _calls_of(model: nn.Module) -> Iterator[list[int]]:
    """Count the forwards of ``model`` inside the block."""
    count = [0]

    def add(*_: object) -> None:
        count[0] += 1

    hook = model.register_forward_pre_hook(add)
    try:
        yield count
    finally:
        hook.remove()
