import pytest
import torch

from selftrain.decoding import SamplingParams
from selftrain.decoding.law import draw, warp
from selftrain.ops import inverse_cdf

LAWS = [
    {"top_k": 1},
    {"top_k": 7},
    {"top_k": 300},
    {"top_k": 12, "temperature": 0.7},
    {"top_k": 40, "top_p": 0.8},
    {"top_k": 40, "min_p": 0.1, "temperature": 1.3},
]


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_a_draw_among_the_k_best_is_the_draw_from_the_whole_law(law, dtype):
    rng = torch.Generator().manual_seed(0)
    logits = (torch.randn(4000, 200, generator=rng) * 2).to(dtype)
    noise = torch.rand(4000, generator=rng, dtype=torch.float64)
    params = SamplingParams(**law)
    probs = warp(logits, params).softmax(-1)
    wanted = inverse_cdf(probs, noise)
    drawn = draw(logits, noise, params)
    assert torch.equal(drawn.tokens, wanted)
    log_probs = probs.gather(-1, wanted.unsqueeze(-1)).squeeze(-1).log()
    torch.testing.assert_close(drawn.log_probs, log_probs.float(), atol=1e-6, rtol=1e-5)


def test_greedy_takes_the_lowest_id_among_equals():
    logits = torch.tensor([[0.0, 2.0, 2.0]])
    drawn = draw(logits, torch.zeros(1, dtype=torch.float64), SamplingParams(temperature=0))
    assert drawn.tokens.tolist() == [1]
    assert drawn.log_probs.tolist() == [0.0]
