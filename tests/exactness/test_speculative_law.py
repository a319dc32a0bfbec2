"""The law of what speculative decoding emits, on neural models, over several blocks."""

import itertools

import pytest
import torch
from scipy import stats

from selftrain.decoding.params import SamplingParams
from selftrain.decoding.sampler import warp
from selftrain.decoding.speculative import SpeculativeDecoder

VOCAB, LENGTH = 4, 5


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
    shape = {"vocab_size": VOCAB, "sharpness": 4.0, "tie_word_embeddings": False}
    target = make_llama(**shape).double()
    draft = make_llama(**shape, seed=1, num_hidden_layers=1).double()
    params = SamplingParams(max_new_tokens=LENGTH, seed=17, **law)
    n = 10_000
    output = SpeculativeDecoder(target, draft, num_draft_tokens=num_draft_tokens).generate(
        torch.tensor([[2, 1]]).expand(n, -1), params=params, eos_token_ids=()
    )
    places = VOCAB ** torch.arange(LENGTH - 1, -1, -1)
    counts = (output.sequences[:, 2:] * places).sum(1).bincount(minlength=VOCAB**LENGTH).double()
    expected = n * joint_law(target, [2, 1], params)
    assert (counts[expected == 0] == 0).all()
    common = expected >= 5
    observed = torch.cat([counts[common], counts[~common].sum()[None]])
    wanted = torch.cat([expected[common], expected[~common].sum()[None]])
    keep = wanted > 0
    result = stats.power_divergence(observed[keep], wanted[keep], lambda_="log-likelihood")
    assert result.pvalue > 1e-4
    assert 0.05 < output.stats.acceptance_rate < 0.98, "both branches must be exercised"
