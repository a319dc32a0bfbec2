"""Token rows to model inputs, and from a model the logits of the scored tokens only.

Shape letters: B batch, T time, N scored tokens, V vocabulary.
"""

import inspect
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from selftrain._core.checks import check_range
from selftrain.ops.masking import completion_mask, pad_sequences


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenRow:
    """One training example as token ids."""

    prompt_ids: tuple[int, ...] = ()
    """Read by the model, never scored."""
    completion_ids: tuple[int, ...] = ()
    """Scored where ``mask`` is True."""
    mask: tuple[bool, ...] | None = None
    """Which completion tokens are scored; None: all."""
    weight: float = 1.0
    """How much the row counts beside the others; 0 is like leaving it out."""
    advantage: float = 0.0
    """What a policy gradient multiplies the row's log-likelihood by."""
    label: float | None = None
    """What a head that judges whole rows should say, in [0, 1]; None where there is nothing to."""

    def __post_init__(self) -> None:
        check_range("weight", self.weight, low=0.0, high=float("inf"), high_open=True)
        if self.label is not None:
            check_range("label", self.label, low=0.0, high=1.0)
        if self.mask is not None and len(self.mask) != len(self.completion_ids):
            raise ValueError(
                f"mask has {len(self.mask)} entries for {len(self.completion_ids)} tokens; "
                "it needs one per token."
            )


@dataclass(frozen=True, slots=True)
class MicroBatch:
    """Rows as model inputs, with the places whose logits are scored. All tensors on one device."""

    inputs: dict[str, Tensor]
    """Keyword arguments of the model's forward pass."""
    first: int
    """The first time step at which any row has a scored token's logits."""
    positions: Tensor
    """``[N]``: indices into the flattened ``[B, T - first]`` logits that predict scored tokens."""
    labels: Tensor
    """``[N]``: the scored tokens."""
    rows: Tensor
    """``[N]``: the row of each scored token."""
    counts: tuple[int, ...]
    """``[B]``: number of scored tokens in each row."""
    token_rows: tuple[TokenRow, ...]
    """``[B]``: the rows themselves, for what looks at token ids on the host: no device sync."""

    @property
    def is_encoder_decoder(self) -> bool:
        """Whether prompts are an encoder's input."""
        return "decoder_input_ids" in self.inputs

    def to(self, device: torch.device) -> "MicroBatch":
        """Return the batch on ``device``."""
        return MicroBatch(
            {name: tensor.to(device) for name, tensor in self.inputs.items()},
            self.first,
            self.positions.to(device),
            self.labels.to(device),
            self.rows.to(device),
            self.counts,
            self.token_rows,
        )


def collate(rows: Sequence[TokenRow], *, decoder_start_id: int | None = None) -> MicroBatch:
    """Pad rows into one batch on the CPU, where finding the scored positions needs no device sync.

    Args:
        rows: The examples. The first token of a decoder-only sequence has no prediction and is
            never scored.
        decoder_start_id: None for decoder-only models; for encoder-decoders the token that starts
            the decoder's input, which makes prompts the encoder's input.
    """
    if decoder_start_id is not None:
        return _collate_encoder_decoder(rows, decoder_start_id)
    padded = pad_sequences([row.prompt_ids + row.completion_ids for row in rows])
    scored_BT = _scored(padded.token_ids, padded.mask, rows, [len(r.prompt_ids) for r in rows])
    scored_BT[:, :1] = False
    # The logits at t - 1 predict the token at t.
    predicts_BT = scored_BT.roll(-1, 1)
    inputs = {"input_ids": padded.token_ids, "attention_mask": padded.mask.long()}
    return _micro_batch(inputs, predicts_BT, padded.token_ids[scored_BT], rows)


def predicting_steps(row: TokenRow, *, is_encoder_decoder: bool) -> list[int]:
    """Return the time steps at which the model predicts the row's scored tokens.

    They count within the decoder's input: prompt and completion of a decoder-only model, the
    shifted completion of an encoder-decoder. Those of all rows of a batch in turn are its ``N``
    scored positions.

    Args:
        row: The example.
        is_encoder_decoder: Which kind of model reads it.
    """
    first = 0 if is_encoder_decoder else len(row.prompt_ids) - 1
    mask = row.mask or (True,) * len(row.completion_ids)
    # Nothing predicts the first token of a decoder-only sequence.
    return [first + i for i, scored in enumerate(mask) if scored and first + i >= 0]


def scored_logits(model: nn.Module, batch: MicroBatch, *, slices_logits: bool) -> Tensor:
    """Return the ``[N, V]`` logits that predict the scored tokens, in the order of ``labels``.

    Args:
        model: Returns logits the Hugging Face way.
        batch: The inputs.
        slices_logits: Whether to spare the model the projection of steps before the first scored
            one, see :func:`takes_logits_to_keep`.
    """
    time = batch.inputs.get("decoder_input_ids", batch.inputs["input_ids"]).shape[1]
    keep = {"logits_to_keep": time - batch.first} if slices_logits else {}
    logits_BTV = model(**batch.inputs, use_cache=False, **keep).logits
    if not slices_logits:
        # Counted from the end: the virtual tokens of prompt tuning stand in front.
        logits_BTV = logits_BTV[:, batch.first - time :]
    return logits_BTV.flatten(0, 1).index_select(0, batch.positions)


def takes_logits_to_keep(model: nn.Module) -> bool:
    """Return whether the model's forward pass can project the last time steps only."""
    return "logits_to_keep" in inspect.signature(model.forward).parameters


def _collate_encoder_decoder(rows: Sequence[TokenRow], decoder_start_id: int) -> MicroBatch:
    prompts = pad_sequences([row.prompt_ids for row in rows])
    decoder = pad_sequences([row.completion_ids for row in rows])
    scored_BT = _scored(decoder.token_ids, decoder.mask, rows, [0] * len(rows))
    shifted_BT = decoder.token_ids.roll(1, 1)
    shifted_BT[:, :1] = decoder_start_id
    inputs = {
        "input_ids": prompts.token_ids,
        "attention_mask": prompts.mask.long(),
        "decoder_input_ids": shifted_BT,
    }
    return _micro_batch(inputs, scored_BT, decoder.token_ids[scored_BT], rows)


def _scored(
    token_ids_BT: Tensor, mask_BT: Tensor, rows: Sequence[TokenRow], prompt_lengths: list[int]
) -> Tensor:
    scored_BT = completion_mask(token_ids_BT, mask_BT, prompt_lengths=torch.tensor(prompt_lengths))
    for i, row in enumerate(rows):
        if row.mask is not None:
            stop = prompt_lengths[i] + len(row.mask)
            scored_BT[i, prompt_lengths[i] : stop] &= torch.tensor(row.mask, dtype=torch.bool)
    return scored_BT


def _micro_batch(
    inputs: dict[str, Tensor], predicts_BT: Tensor, labels_N: Tensor, rows: Sequence[TokenRow]
) -> MicroBatch:
    row_N, time_N = predicts_BT.nonzero(as_tuple=True)
    # With nothing scored one step is kept all the same, so that the loss stays connected.
    last = predicts_BT.shape[1] - 1
    first = int(time_N.min()) if len(time_N) else last
    positions_N = row_N * (last + 1 - first) + time_N - first
    counts = tuple(predicts_BT.sum(1).tolist())
    return MicroBatch(inputs, first, positions_N, labels_N, row_N, counts, tuple(rows))
