"""The exact law of what a verifier lets through, over every draft and all of its noise.

Legend: ``N`` prefixes, ``D`` drafts, ``K`` drafted tokens, ``V`` vocabulary.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from selftrain._core.checks import check_int
from selftrain.decoding.proof.integrate import integrate
from selftrain.decoding.proof.tabular import LanguageModel, all_texts, one_hot

Stops = Callable[[Tensor], Tensor]
"""Maps texts ``[rows, time]`` to booleans ``[rows]``."""

_CHUNK = 1 << 16  # rows that one call of a verifier gets, at the most


class Outcome(Protocol):
    """What a verifier returns; :class:`selftrain.ops.Verdict` is one."""

    @property
    def num_accepted(self) -> Tensor:
        """How many drafted tokens stand ``[batch]``."""
        ...

    @property
    def next_tokens(self) -> Tensor:
        """The token after them ``[batch]``."""
        ...


class Verifier(Protocol):
    """Anything that is called as :func:`selftrain.ops.verify_tokens` is."""

    def __call__(
        self,
        target_logits: Tensor,
        draft_logits: Tensor | None,
        draft_tokens: Tensor,
        /,
        *,
        accept_uniforms: Tensor,
        emit_uniforms: Tensor,
    ) -> Outcome:
        """Decide how many drafted tokens stand, and what follows them."""
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class Drafting:
    """How drafts come about, and what the verifier is told of it."""

    num_draft_tokens: int
    """Tokens drafted per block, at least 0."""
    determined: bool = False
    """The draft takes its most likely token; the verifier is told no logits."""
    stops: Stops | None = None
    """Maps texts ``[rows, time]`` whose last token was just drafted to whether drafting ends there;
    the token stays in the block."""
    reported: LanguageModel | None = None
    """The draft's law as the verifier is told it, if that is not the one that was drawn from."""


class Outcomes(NamedTuple):
    """All that one block may emit after each of some prefixes."""

    prefix: Tensor
    """Index of the prefix ``[outcomes]``."""
    emitted: Tensor
    """The tokens, -1 after the last ``[outcomes, K + 1]``."""
    num_emitted: Tensor
    """How many ``[outcomes]``."""
    probs: Tensor
    """The probability given the prefix ``[outcomes]``; it may be 0 for an outcome that only a
    single value of some uniform brings about."""
    possible: Tensor
    """Whether the target can emit these tokens at all ``[outcomes]``."""


class _Drafts(NamedTuple):
    prefix: Tensor
    tokens: Tensor
    weight: Tensor


def block_outcomes(
    verifier: Verifier,
    target: LanguageModel,
    draft: LanguageModel,
    drafting: Drafting,
    prefixes: Tensor,
) -> Outcomes:
    """Return everything that one block may emit after each of ``prefixes`` ``[N, T]``.

    The verifier is a black box: see :mod:`selftrain.decoding.proof.integrate` for what is assumed
    of it. One uniform is passed for all places where a block may end, since a block ends once.

    Raises:
        ValueError: If the outcome is not that of comparing uniforms with thresholds, or is none:
            no token, or more accepted than drafted.
    """
    check_int("num_draft_tokens", drafting.num_draft_tokens, low=0)
    drafts = _all_drafts(draft, drafting, prefixes)
    k, texts = drafting.num_draft_tokens, torch.cat([prefixes[drafts.prefix], drafts.tokens], 1)
    # After a void slot any law will do, so long as it is one: the text's own, with token 0 there.
    laws = [texts[:, : prefixes.shape[1] + i].clamp(min=0) for i in range(k + 1)]
    target_logits = torch.stack([target(text) for text in laws], 1)
    draft_logits = None
    if k and not drafting.determined:
        report = drafting.reported or draft
        draft_logits = torch.stack([report(text) for text in laws[:-1]], 1)
    vocab = target_logits.shape[-1]

    def label(row: Tensor, points: Tensor) -> Tensor:
        parts = [
            verifier(
                target_logits[index],
                None if draft_logits is None else draft_logits[index],
                drafts.tokens[index],
                accept_uniforms=at[:, :k],
                emit_uniforms=at[:, k:].expand(-1, k + 1),
            )
            for index, at in zip(row.split(_CHUNK), points.split(_CHUNK), strict=True)
        ]
        num_accepted = torch.cat([part.num_accepted for part in parts])
        return num_accepted * (vocab + 1) + torch.cat([part.next_tokens for part in parts]) + 1

    boxes = integrate(label, len(drafts.weight), k + 1)
    num_accepted, following = boxes.label // (vocab + 1), boxes.label % (vocab + 1) - 1
    tokens = drafts.tokens[boxes.row]
    if (following < 0).any() or (num_accepted > (tokens >= 0).sum(1)).any():
        raise ValueError("the verifier emits no token, or accepts more tokens than were drafted.")
    places = torch.arange(k + 1)
    emitted = torch.nn.functional.pad(tokens, (0, 1), value=-1)
    emitted = torch.where(places < num_accepted.unsqueeze(1), emitted, -1)
    emitted = emitted.scatter(1, num_accepted.unsqueeze(1), following.unsqueeze(1))
    chosen = target_logits[boxes.row].gather(-1, emitted.clamp(min=0).unsqueeze(-1)).squeeze(-1)
    return Outcomes(
        drafts.prefix[boxes.row],
        emitted,
        num_accepted + 1,
        drafts.weight[boxes.row] * boxes.volume,
        ((chosen > -torch.inf) | (emitted < 0)).all(1),
    )


def _all_drafts(draft: LanguageModel, drafting: Drafting, prefixes: Tensor) -> _Drafts:
    """Return every draft that may be drawn after each prefix, with its probability."""
    law = one_hot(draft) if drafting.determined else draft
    texts, prefix = prefixes, torch.arange(len(prefixes))
    weight = torch.ones(len(prefixes), dtype=torch.float64)
    active = torch.ones(len(prefixes), dtype=torch.bool)
    for _ in range(drafting.num_draft_tokens):
        probs = law(texts.clamp(min=0)).double().softmax(-1)
        # A row that has stopped goes on as one row, with a void token: column 0 stands for it.
        probs = torch.cat([(~active).double().unsqueeze(1), probs * active.unsqueeze(1)], 1)
        row, token = (probs > 0).nonzero(as_tuple=True)
        texts = torch.cat([texts[row], token.unsqueeze(1) - 1], 1)
        prefix, weight, active = prefix[row], weight[row] * probs[row, token], active[row]
        if drafting.stops is not None:
            active = active & ~drafting.stops(texts.clamp(min=0))
    return _Drafts(prefix, texts[:, prefixes.shape[1] :], weight)


def enumerate_block(
    verifier: Verifier,
    target: LanguageModel,
    draft: LanguageModel,
    num_draft_tokens: int,
    *,
    determined: bool = False,
    stops: Stops | None = None,
    reported: LanguageModel | None = None,
) -> Tensor:
    """Return the exact joint law of ``num_draft_tokens + 1`` tokens, the first of them one block.

    Where the block emits fewer, the target goes on by itself. For an exact verifier the result is
    :func:`sequence_law` of the target.

    Args:
        verifier: The rule, called as :func:`selftrain.ops.verify_tokens` is.
        target: The model whose law is to be kept.
        draft: The model that drafts are drawn from.
        num_draft_tokens: Tokens drafted.
        determined: As in :class:`Drafting`.
        stops: As there.
        reported: As there.

    Returns:
        Probabilities ``[vocab] * (num_draft_tokens + 1)``, float64.

    Raises:
        ValueError: As :func:`block_outcomes`.

    Example:
        >>> from selftrain.decoding.proof import fixed_model
        >>> from selftrain.ops import verify_tokens
        >>> target, draft = fixed_model([0.1, 0.9]), fixed_model([0.7, 0.3])
        >>> enumerate_block(verify_tokens, target, draft, 1).sum(1)
        tensor([0.1000, 0.9000], dtype=torch.float64)
    """
    how = Drafting(
        num_draft_tokens=num_draft_tokens, determined=determined, stops=stops, reported=reported
    )
    return joint_law(verifier, target, draft, how, num_draft_tokens + 1, blocks_until=1)[0]


def enumerate_sequence(
    verifier: Verifier,
    target: LanguageModel,
    draft: LanguageModel,
    num_draft_tokens: int,
    *,
    num_tokens: int,
    determined: bool = False,
    stops: Stops | None = None,
    reported: LanguageModel | None = None,
) -> Tensor:
    """Return the exact joint law of ``num_tokens`` tokens, decoded in as many blocks as it takes.

    Each block has fresh noise: what reuse of noise does to the law, :func:`simulate` shows.

    Args:
        verifier: As in :func:`enumerate_block`.
        target: As there.
        draft: As there.
        num_draft_tokens: Tokens drafted per block.
        num_tokens: Length of the texts; what the last block emits beyond is cut off.
        determined: As in :class:`Drafting`.
        stops: As there.
        reported: As there.

    Returns:
        Probabilities ``[vocab] * num_tokens``, float64.
    """
    check_int("num_tokens", num_tokens, low=1)
    how = Drafting(
        num_draft_tokens=num_draft_tokens, determined=determined, stops=stops, reported=reported
    )
    return joint_law(verifier, target, draft, how, num_tokens, blocks_until=num_tokens)[0]


def joint_law(
    verifier: Verifier,
    target: LanguageModel,
    draft: LanguageModel,
    drafting: Drafting,
    num_tokens: int,
    *,
    blocks_until: int,
) -> tuple[Tensor, bool]:
    """Return the law of ``num_tokens`` tokens, and whether all that blocks emit is possible.

    Blocks begin behind texts shorter than ``blocks_until``; from there the target goes on alone.
    What is followed, length by length, is the probability that a block begins after each text.
    """
    vocab = target(torch.zeros(1, 0, dtype=torch.long)).shape[-1]
    starts = [torch.zeros(vocab**n, dtype=torch.float64) for n in range(num_tokens + 1)]
    starts[0][0] = 1.0
    possible = True
    for length in range(num_tokens):
        index = starts[length].nonzero().squeeze(1)
        texts, mass = all_texts(vocab, length)[index], starts[length][index]
        if length >= blocks_until:
            following = target(texts).double().softmax(-1) * mass.unsqueeze(1)
            starts[length + 1].view(-1, vocab)[index] += following
            continue
        outcomes = block_outcomes(verifier, target, draft, drafting, texts)
        possible = possible and bool(outcomes.possible.all())
        num_kept = outcomes.num_emitted.clamp(max=num_tokens - length)
        for kept in range(1, drafting.num_draft_tokens + 2):
            of = num_kept == kept
            if of.any():
                place = vocab ** torch.arange(kept - 1, -1, -1)
                text = (outcomes.emitted[of, :kept] * place).sum(1)
                text = text + index[outcomes.prefix[of]] * vocab**kept
                share = outcomes.probs[of] * mass[outcomes.prefix[of]]
                starts[length + kept].index_add_(0, text, share)
    return starts[-1].view([vocab] * num_tokens), possible


def emitted_per_block(outcomes: Outcomes) -> float:
    """Return the mean number of tokens that the block emits, averaged over the prefixes."""
    num_prefixes = int(outcomes.prefix.max()) + 1
    return float((outcomes.probs * outcomes.num_emitted).sum()) / num_prefixes
