"""A smaller model over the same vocabulary as drafter."""

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from selftrain.decoding.cache import (
    CacheKind,
    CacheOpener,
    DecodingCache,
    is_encoder_decoder,
)
from selftrain.decoding.drafters.protocol import Draft, Pick, Rows, Setting
from selftrain.decoding.sampler import check_room


class ModelDrafter:
    """Drafts with a model, token by token.

    Args:
        model: A model over the target's vocabulary; with an encoder if the target has one, which
            then reads the same input.
        tokenizer: Needed where the models' numbers of logits differ by padding.
        cache: How its cache rolls back; see :class:`selftrain.SpeculativeDecoder`.
        compile: Whether its steps are compiled; see there too.

    Raises:
        TypeError: If the model cannot be driven through such a cache; the message says why.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        *,
        tokenizer: PreTrainedTokenizerBase | None = None,
        cache: CacheKind = "slots",
        compile: bool = False,
    ) -> None:
        self.model, self.tokenizer = model, tokenizer
        self._caches = CacheOpener(model, cache, role="draft", compile=compile)

    @property
    def models(self) -> tuple[nn.Module, ...]:
        """The modules at work, to be put in evaluation mode."""
        return (self.model,)

    def check(self, target: PreTrainedModel) -> None:
        """Raise unless the draft lies where the target does and speaks its vocabulary."""
        if target.device != self.model.device:
            raise ValueError(
                f"the target is on {target.device}, the draft on {self.model.device}; "
                f"move one: draft.to({str(target.device)!r})."
            )
        if is_encoder_decoder(target) != is_encoder_decoder(self.model):
            raise TypeError(
                "one of target and draft has an encoder, the other has not; both must read the "
                "same input."
            )
        target_size, draft_size = num_logits(target), num_logits(self.model)
        used = None if self.tokenizer is None else len(self.tokenizer)
        if target_size == draft_size or (used is not None and min(target_size, draft_size) >= used):
            return
        raise ValueError(
            f"the target has {target_size} logits, the draft {draft_size}. Speculative decoding "
            "needs one vocabulary. If the difference is padding, pass the common tokenizer"
            + ("." if used is None else f" (the one passed has {used} tokens).")
        )

    def start(self, setting: Setting) -> "ModelSession":
        """Begin one call of ``generate``."""
        check_room(setting.prompts, setting.params.max_new_tokens, self.model, "draft")
        cache = self._caches.open(setting.capacity, setting.source, sizes=(1, 2))
        return ModelSession(cache, num_logits(self.model), setting.vocab_size)


class ModelSession:
    """A draft model at work on a batch; its cache follows the rows one proposal behind.

    Args:
        cache: The draft's, still empty.
        draft_size: The draft's number of logits.
        vocab_size: The target's: ids beyond it cannot be proposed, and ids that the draft lacks get
            no mass.
    """

    def __init__(self, cache: DecodingCache, draft_size: int, vocab_size: int) -> None:
        self.cache, self.draft_size, self.vocab_size = cache, draft_size, vocab_size
        self._fed: list[int] = []  # how many tokens of each row the cache has seen, at most

    def propose(self, rows: Rows, num_tokens: int, pick: Pick) -> Draft:
        """Feed what each row has gained, then draw and feed one token after another.

        A row that lost proposals has been fed all but its last token; one whose proposals all stood
        lacks two. The rows are fed the same number of last tokens, which at worst writes again
        what is there.
        """
        positions, fed = self._unseen(rows)
        picks, extent = [], rows.extent
        for slot in range(num_tokens):
            logits = self.cache.forward(fed, positions, extent=extent + slot, last_only=True)
            picks.append(pick(self._resize(logits[:, -1]), slot))
            # The target may hold padding ids that the draft has no row for: any row will do there.
            fed = self._known(picks[-1][0]).unsqueeze(1)
            positions = torch.minimum(rows.lengths + slot, rows.last).unsqueeze(1)
        self._fed = [n + num_tokens - 1 for n in rows.host_lengths]
        return Draft.stack(picks)

    def select(self, rows: Tensor) -> None:
        """Keep the rows with these indices."""
        self.cache.select(rows)
        if self._fed:
            self._fed = [self._fed[row] for row in rows.tolist()]

    def _unseen(self, rows: Rows) -> tuple[Tensor, Tensor]:
        """Return positions and tokens of the last tokens that some row has not been fed."""
        lengths = rows.host_lengths
        if not self._fed:
            most = max(lengths) - 1
            self.cache.prefill(
                [
                    row[: n - 1]
                    for row, n in zip(rows.tokens[:, :most].tolist(), lengths, strict=True)
                ]
            )
            self._fed = [n - 1 for n in lengths]
        missing = max(n - min(n - 1, fed) for n, fed in zip(lengths, self._fed, strict=True))
        back = torch.arange(-missing, 0, device=rows.lengths.device)
        positions = rows.lengths.unsqueeze(1) + back
        if missing > min(lengths):  # a short row feeds its first token several times
            positions = positions.clamp(min=0)
        return positions, self._known(rows.tokens.gather(1, positions))

    def _known(self, tokens: Tensor) -> Tensor:
        if self.draft_size >= self.vocab_size:
            return tokens
        return tokens.clamp(max=self.draft_size - 1)

    def _resize(self, logits: Tensor) -> Tensor:
        missing = self.vocab_size - logits.shape[-1]
        if missing == 0:
            return logits
        return nn.functional.pad(logits, (0, missing), value=-torch.inf)  # negative: cut


def num_logits(model: PreTrainedModel) -> int:
    """Return the size of the model's vocabulary, padding included."""
    return model.config.get_text_config(decoder=True).vocab_size
