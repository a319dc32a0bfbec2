"""Language models that are tables: small enough that every text's probability can be computed."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from selftrain._core.checks import check_int, check_range
from selftrain.ops.warp import warp_logits

LanguageModel = Callable[[Tensor], Tensor]
"""Maps prefixes ``[rows, time]``, of any time from 0 on, to logits of the next token
``[rows, vocab]``."""


@dataclass(frozen=True, slots=True, eq=False)
class TabularModel:
    """A law of the next token for every context of up to ``order`` tokens.

    A context is the last ``order`` tokens of a prefix; a shorter prefix is a context of its own. So
    for texts of up to ``order + 1`` tokens any language model whatever is such a table.
    """

    probs: Tensor
    """The laws, float64 ``[(vocab + 1) ** order, vocab]``."""
    order: int
    """How many tokens back the laws look."""

    @property
    def vocab_size(self) -> int:
        """The number of tokens."""
        return self.probs.shape[-1]

    def __call__(self, prefixes: Tensor) -> Tensor:
        """Return log-probabilities of the token after each prefix ``[rows, time]``.

        Prefixes of different lengths are padded with -1 on the left.
        """
        time = prefixes.shape[1]
        padded = torch.nn.functional.pad(prefixes, (self.order, 0), value=-1)
        context = padded.narrow(1, time, self.order) + 1
        place = (self.vocab_size + 1) ** torch.arange(self.order, device=prefixes.device)
        return self.probs[(context * place).sum(-1)].log()

    def warped(self, **law: float | int | None) -> "TabularModel":
        """Return the model after :func:`selftrain.ops.warp_logits` with these settings."""
        logits = warp_logits(self.probs.log(), **law)  # pyrefly: ignore
        return TabularModel(logits.softmax(-1), self.order)


def random_model(
    vocab_size: int,
    *,
    order: int = 3,
    concentration: float = 1.0,
    zeros: float = 0.0,
    support: Sequence[int] | None = None,
    seed: int = 0,
) -> TabularModel:
    """Return a model whose laws are drawn from a Dirichlet distribution, one for each context.

    Args:
        vocab_size: The number of tokens, at least 1.
        order: How many tokens back the laws look.
        concentration: The parameter of the Dirichlet distribution: 1 is uniform over all laws, a
            small value puts nearly all mass on one token.
        zeros: The probability with which a token gets no mass at all; one token always keeps some.
        support: The only tokens that may have mass; None for all.
        seed: Seed of the tables.
    """
    check_int("vocab_size", vocab_size, low=1)
    check_int("order", order, low=0)
    check_range("concentration", concentration, low=0.0, low_open=True)
    check_range("zeros", zeros, low=0.0, high=1.0)
    tokens = np.arange(vocab_size) if support is None else np.asarray(support)
    rng = np.random.default_rng(seed)
    num_contexts = (vocab_size + 1) ** order
    laws = rng.dirichlet(np.full(len(tokens), concentration), size=num_contexts)
    keep = rng.random(laws.shape) >= zeros
    keep[np.arange(num_contexts), laws.argmax(-1)] = True
    probs = np.zeros((num_contexts, vocab_size))
    probs[:, tokens] = laws * keep
    return TabularModel(torch.from_numpy(probs / probs.sum(-1, keepdims=True)), order)


def fixed_model(law: Sequence[float]) -> TabularModel:
    """Return the model that has the same law whatever came before."""
    probs = torch.tensor([law], dtype=torch.float64)
    return TabularModel(probs / probs.sum(), 0)


def one_hot(model: LanguageModel) -> LanguageModel:
    """Return the model that puts all mass on the most likely token of ``model``."""
    return lambda prefixes: warp_logits(model(prefixes), temperature=0.0)


def all_texts(vocab_size: int, num_tokens: int) -> Tensor:
    """Return every text of ``num_tokens`` tokens, in order ``[vocab ** tokens, tokens]``."""
    index = torch.arange(vocab_size**num_tokens).unsqueeze(1)
    place = vocab_size ** torch.arange(num_tokens - 1, -1, -1)
    return index // place % vocab_size


def sequence_law(model: LanguageModel, num_tokens: int) -> Tensor:
    """Return the probability of every text, float64 ``[vocab] * num_tokens``."""
    law, vocab = torch.ones(1, dtype=torch.float64), 1
    for length in range(num_tokens):
        following = model(all_texts(vocab, length)).double().softmax(-1)
        vocab = following.shape[-1]
        law = (law.unsqueeze(1) * following).flatten()
    return law.view([vocab] * num_tokens)
