"""A draft model with another tokenizer than the target's."""

import math
import sys
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from selftrain.decoding.cache import SlotCache, max_positions, slot_obstacle
from selftrain.decoding.drafters.model import num_logits
from selftrain.decoding.drafters.protocol import Draft, Pick, Rows, Setting
from selftrain.decoding.drafters.spelling import by_spelling, spell, spellings


class VocabularyDrafter:
    """Propose with a model over another vocabulary: the tokens that both vocabularies have.

    The draft's law is restricted to the intersection of the vocabularies and normalised, and then
    it is a law over the target's tokens like any other: decoding is exact and samples, whatever the
    two tokenizers are. A token that the draft lacks is only never proposed.
    Source: Timor et al., "token-level intersection", arXiv 2502.05202.

    The draft reads a row in its own tokens. Prompts are tokenized anew; later tokens of the target
    are taken one by one, those the draft lacks spelled with the longest of its own. That is a
    look-up on the host for each new token; a block also waits for the device once more than with a
    draft of the same vocabulary. The tables take about a second for 100 000 tokens.

    Args:
        model: The draft, a causal model.
        draft_tokenizer: The draft's tokenizer.
        target_tokenizer: The target's.

    Raises:
        TypeError: If the draft cannot be driven through slots.
        ValueError: If the vocabularies have no token in common.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        draft_tokenizer: PreTrainedTokenizerBase,
        target_tokenizer: PreTrainedTokenizerBase,
    ) -> None:
        obstacle = slot_obstacle(model)
        if obstacle is not None:
            raise TypeError(f"the draft cannot be used for speculative decoding: {obstacle}.")
        self.model = model
        self.translation = Translation(
            draft_tokenizer, target_tokenizer, num_draft_ids=num_logits(model)
        )
        if not self.translation.shared:
            raise ValueError("draft_tokenizer and target_tokenizer have no token in common.")

    @property
    def models(self) -> tuple[nn.Module, ...]:
        """The modules at work, to be put in evaluation mode."""
        return (self.model,)

    def check(self, target: PreTrainedModel) -> None:
        """Raise unless the draft lies where the target does."""
        if target.device != self.model.device:
            raise ValueError(
                f"the target is on {target.device}, the draft on {self.model.device}; "
                f"move one: draft.to({str(target.device)!r})."
            )

    def start(self, setting: Setting) -> "_VocabularyDraft":
        """Tokenize the prompts anew."""
        return _VocabularyDraft(self.model, self.translation, setting)


class Translation:
    """What the tokens of a target are to a draft.

    Args:
        draft_tokenizer: The draft's tokenizer.
        target_tokenizer: The target's.
        num_draft_ids: The draft's number of logits: ids from there on do not exist.
    """

    def __init__(
        self,
        draft_tokenizer: PreTrainedTokenizerBase,
        target_tokenizer: PreTrainedTokenizerBase,
        *,
        num_draft_ids: int,
    ) -> None:
        self._draft_tokenizer, self._target_tokenizer = draft_tokenizer, target_tokenizer
        ids = by_spelling(spellings(draft_tokenizer), num_draft_ids)
        self._target = spellings(target_tokenizer)
        longest = max((len(s) for s in ids if isinstance(s, bytes)), default=0)
        self.shared: dict[int, int] = {t: ids[s] for t, s in self._target.items() if s in ids}
        """The draft's id of each token of the target that it has."""
        self._pieces = {
            token: [self.shared[token]]
            if token in self.shared
            else (spell(spelling, ids, longest=longest) if isinstance(spelling, bytes) else [])
            for token, spelling in self._target.items()
        }
        self.growth = sum(map(len, self._pieces.values())) / max(1, len(self._pieces))
        """Mean number of the draft's tokens for one of the target's."""

    def continuation(self, token_ids: Sequence[int]) -> list[int]:
        """Return new tokens of the target as the draft's, each by itself."""
        return [piece for token in token_ids for piece in self._pieces.get(token, ())]

    def prompt(self, token_ids: Sequence[int]) -> list[int]:
        """Return a text of the target as the draft would tokenize it, special tokens apart."""
        tokens = self._beginning()
        text: list[int] = []
        for token in [*token_ids, -1]:
            if isinstance(self._target.get(token), bytes):
                text.append(token)
                continue
            if text:
                decoded = self._target_tokenizer.decode(text, clean_up_tokenization_spaces=False)
                tokens += self._draft_tokenizer(decoded, add_special_tokens=False)["input_ids"]
                text = []
            special = self.shared.get(token)
            if special is not None and tokens != [special]:  # both may begin with the same
                tokens.append(special)
        return tokens or [0]  # a model needs something to begin with

    def _beginning(self) -> list[int]:
        """Return what the draft's tokenizer puts before every text: its first token, or nothing."""
        first = self._draft_tokenizer("a")["input_ids"][:1]
        return first if first == [self._draft_tokenizer.bos_token_id] else []


class _VocabularyDraft:
    """The draft at work on a batch; its rows are kept on the host, in its own tokens."""

    def __init__(self, model: PreTrainedModel, translation: Translation, setting: Setting) -> None:
        self.translation = translation
        self.texts = [translation.prompt(p) for p in setting.prompts]
        # How many of the target's tokens are in the texts, how many tokens of these were fed (and
        # stand), and which proposals were fed after them.
        self.read = [len(p) for p in setting.prompts]
        self.stored = [0] * len(self.texts)
        self.ahead = torch.zeros(len(self.texts), 0, dtype=torch.long, device=model.device)
        # Of more tokens than this a row proposes nothing; whatever rows there are beside it.
        new = setting.params.max_new_tokens
        ahead = setting.capacity - max(self.read) - new  # room for what one block proposes
        room = math.ceil(max(1.0, translation.growth) * new)
        most = max_positions(model) or sys.maxsize
        self.limits = [min(len(text) + room, most - ahead) for text in self.texts]
        self.cache = SlotCache(model, capacity=max(1, *self.limits) + ahead)
        # The draft's id of each of the target's, 0 for those it lacks, and -inf to bar these.
        ids = torch.zeros(setting.vocab_size, dtype=torch.long)
        bar = torch.full((setting.vocab_size,), -torch.inf)
        for token, index in translation.shared.items():
            if token < setting.vocab_size:
                ids[token], bar[token] = index, 0.0
        self.ids, self.bar = ids.to(model.device), bar.to(model.device)

    def propose(self, rows: Rows, num_tokens: int, pick: Pick) -> Draft:
        self._catch_up(rows)
        full = [len(text) > limit for text, limit in zip(self.texts, self.limits, strict=True)]
        if all(full):
            return Draft(rows.tokens.new_full((len(self.texts), num_tokens), -1), None)
        fed, positions, extent = self._unseen()
        ends = positions[:, -1:]
        picks, ahead = [], []
        for slot in range(num_tokens):
            logits = self.cache.forward(fed, positions, extent=extent + slot, last_only=True)
            picks.append(pick(logits[:, -1].index_select(1, self.ids) + self.bar, slot))
            fed = self.ids[picks[-1][0]].unsqueeze(1)
            ahead.append(fed)
            positions = ends + slot + 1
        self.ahead = torch.cat(ahead[:-1], dim=1) if ahead[1:] else fed[:, :0]
        draft = Draft.stack(picks)
        if any(full):
            void = torch.tensor(full, device=draft.tokens.device).unsqueeze(1)
            draft = draft._replace(tokens=draft.tokens.masked_fill(void, -1))
        return draft

    def select(self, rows: Tensor) -> None:
        """Keep the rows with these indices."""
        kept = rows.tolist()
        self.texts, self.read = [self.texts[i] for i in kept], [self.read[i] for i in kept]
        self.stored, self.limits = [self.stored[i] for i in kept], [self.limits[i] for i in kept]
        self.ahead = self.ahead[rows]
        self.cache.select(rows)

    def _catch_up(self, rows: Rows) -> None:
        """Append what the rows have gained, and find out which proposals are part of it."""
        first = min(self.read)
        gained = rows.tokens[:, first : rows.extent].tolist()
        for row, (tokens, ahead) in enumerate(zip(gained, self.ahead.tolist(), strict=True)):
            new = tokens[self.read[row] - first : rows.host_lengths[row] - first]
            pieces = self.translation.continuation(new)
            kept = 0
            while kept < min(len(pieces), len(ahead)) and pieces[kept] == ahead[kept]:
                kept += 1
            self.stored[row] += kept
            self.texts[row] += pieces
        self.read = list(rows.host_lengths)

    def _unseen(self) -> tuple[Tensor, Tensor, int]:
        """Return the last tokens that some row has not been fed, their positions and the extent."""
        # A full row is cut to what there are slots for; nobody looks at what it proposes.
        lengths = [max(1, min(len(t), n)) for t, n in zip(self.texts, self.limits, strict=True)]
        pairs = list(zip(lengths, self.stored, strict=True))
        missing = max(n - min(n - 1, stored) for n, stored in pairs)
        # A short row feeds its first token several times.
        places = [[max(0, n - missing + i) for i in range(missing)] for n in lengths]
        fed = [[t[p] for p in row] for t, row in zip(self.texts, places, strict=True)]
        self.stored = lengths
        device = self.ids.device
        return torch.tensor(fed, device=device), torch.tensor(places, device=device), max(lengths)
