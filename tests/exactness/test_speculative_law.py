"""The law of what speculative decoding emits, on neural models, over several blocks."""

import itertools

import pytest
import torch
from scipy import stats

from selftrain.decoding.drafters.layers import LayerDrafter
from selftrain.decoding.drafters.ngram import NGramDrafter
from selftrain.decoding.drafters.tree import TreeDrafter
from selftrain.decoding.law import warp
from selftrain.decoding.params import SamplingParams
from selftrain.decoding.speculative import SpeculativeDecoder

VOCAB, LENGTH = 4, 5
SHAPE = {"vocab_size": VOCAB, "sharpness": 4.0, "tie_word_embeddings": False}


def joint_law(model, prompt, params):
    """The exact law of every text of LENGTH tokens, one uncached forward each."""
    texts = torch.tensor(list(itertools.product(range(VOCAB), repeat=LENGTH)))
    rows = torch.cat([torch.tensor([prompt]).expand(len(texts), -1), texts], dim=1)
    with torch.no_grad():
        logits = model(input_ids=rows).logits[:, len(prompt) - 1 : -1]
    conditional = warp(logits, params).log_softmax(-1)
    return conditional.gather(-1, texts.unsqueeze(-1)).squeeze(-1).sum(1).exp()


@pytest.mark.parametrize(
    ("num_draft_tokens", "law"),
    [
        (1, {}),
        (2, {}),
        (4, {}),
        (2, {"temperature": 0.5}),
        (2, {"top_k": 3}),
        (2, {"top_p": 0.8}),
    ],
)
def test_joint_law_of_five_tokens_is_the_targets(make_llama, law, num_draft_tokens):
    """G-test over all texts of five tokens: with one or two drafted these span 2 to 5 blocks.

    6 cases at p > 1e-4 each: a false alarm in about 1 of 1700 seeds; the seed is fixed.
    """
    target = make_llama(**SHAPE).double()
    draft = make_llama(**SHAPE, seed=1, num_hidden_layers=1).double()
    decoder = SpeculativeDecoder(target, draft, num_draft_tokens=num_draft_tokens)
    check_law(decoder, law)


DRAFTERS = {
    "n-grams": lambda draft: NGramDrafter(),
    "first layers": lambda draft: LayerDrafter(1),
    "top children": lambda draft: TreeDrafter(draft, (2, 2)),
    "drawn children": lambda draft: TreeDrafter(draft, (3, 2, 1), sampling="without_replacement"),
    "more children than tokens": lambda draft: TreeDrafter(
        draft, (5, 5), sampling="without_replacement"
    ),
}


@pytest.mark.parametrize(
    ("name", "law"),
    [*((name, {}) for name in DRAFTERS), ("drawn children", {"top_k": 3, "temperature": 0.7})],
)
def test_joint_law_is_the_targets_whatever_drafts(make_llama, name, law):
    """The prompt repeats itself, so that n-grams have something to propose in every block."""
    target = make_llama(**SHAPE).double()
    draft = make_llama(**SHAPE, seed=1, num_hidden_layers=1).double()
    decoder = SpeculativeDecoder(target, DRAFTERS[name](draft), num_draft_tokens=3)
    check_law(decoder, law, prompt=[0, 3, 2, 1, 2, 1], n=4000)


def check_law(decoder, law, *, prompt=(2, 1), n=10_000):
    """G-test of ``n`` rows against the target's exact law."""
    params, target = SamplingParams(max_new_tokens=LENGTH, seed=17, **law), decoder.target
    output = decoder.generate(torch.tensor([prompt]).expand(n, -1), params=params, eos_token_ids=())
    places = VOCAB ** torch.arange(LENGTH - 1, -1, -1)
    counts = (
        (output.sequences[:, len(prompt) :] * places)
        .sum(1)
        .bincount(minlength=VOCAB**LENGTH)
        .double()
    )
    expected = n * joint_law(target, list(prompt), params)
    assert (counts[expected == 0] == 0).all()
    common = expected >= 5
    observed = torch.cat([counts[common], counts[~common].sum()[None]])
    wanted = torch.cat([expected[common], expected[~common].sum()[None]])
    keep = wanted > 0
    result = stats.power_divergence(observed[keep], wanted[keep], lambda_="log-likelihood")
    assert result.pvalue > 1e-4
    assert 0.05 < output.stats.acceptance_rate < 0.98, "both branches must be exercised"
