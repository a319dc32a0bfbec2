import pytest
import torch
from transformers import GenerationConfig

from selftrain.bench.decoders import (
    left_padded,
    peer_assisted,
    peer_plain,
    random_prompts,
)
from selftrain.bench.pair import Pair
from selftrain.bench.synthetic import synthetic_pair
from selftrain.decoding import SamplingParams

PROMPTS = random_prompts(3, 9, vocab_size=256, seed=0, round=0)


def params(temperature=0.0, num=20):
    return SamplingParams(max_new_tokens=num, temperature=temperature, seed=1)


@pytest.fixture(scope="module")
def pair():
    return synthetic_pair("tiny", dtype=torch.float64, damping=0.1)


def test_prompts_are_ragged_and_depend_on_seed_and_round():
    assert [len(p) for p in PROMPTS] == [9, 8, 6]
    assert random_prompts(3, 9, vocab_size=256, seed=0, round=0) == PROMPTS
    for other in ({"seed": 1, "round": 0}, {"seed": 0, "round": 1}):
        assert random_prompts(3, 9, vocab_size=256, **other) != PROMPTS
    assert all(len(p) == 1 for p in random_prompts(4, 1, vocab_size=9, seed=0, round=0))


def test_padding_is_on_the_left():
    ids, mask = left_padded([[5, 6], [7]], torch.device("cpu"))
    assert ids.tolist() == [[5, 6], [0, 7]]
    assert mask.tolist() == [[1, 1], [0, 1]]


def test_greedy_decoders_agree_on_the_text(pair):
    decoders = {
        "ours": Pair(*pair).decoder(num_draft_tokens=3),
        "plain": Pair(*pair).decoder(num_draft_tokens=0),
        "peer plain": peer_plain(pair[0]),
        "peer assisted": peer_assisted(*pair, num_draft_tokens=3),
    }
    texts = {name: decode(PROMPTS, params()).new_tokens for name, decode in decoders.items()}
    assert all(text == texts["plain"] for text in texts.values())


def test_greedy_block_efficiency_is_the_peers(pair):
    """The same drafts are accepted, so both call the target equally often."""
    ours = Pair(*pair).decoder(num_draft_tokens=3)(PROMPTS, params())
    peer = peer_assisted(*pair, num_draft_tokens=3)(PROMPTS, params())
    assert 1.3 < ours.block_efficiency < 3.9
    assert ours.num_target_calls == peer.num_target_calls
    assert ours.stats.block_efficiency == pytest.approx(peer.block_efficiency)


def test_plain_decoding_calls_the_target_once_a_token(pair):
    for decoder in (Pair(*pair).decoder(num_draft_tokens=0), peer_plain(pair[0])):
        decoded = decoder(PROMPTS, params(num=7))
        assert decoded.num_new_tokens == decoded.num_target_calls == 21
        assert decoded.block_efficiency == 1


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_no_token_ends_a_text(pair, temperature):
    target, draft = pair
    decoders = [
        Pair(target, draft).decoder(num_draft_tokens=2),
        peer_plain(target),
        peer_assisted(target, draft, num_draft_tokens=2),
        peer_assisted(target, draft, num_draft_tokens="auto"),
    ]
    before = target.generation_config
    target.generation_config = GenerationConfig(eos_token_id=list(range(256)), top_k=1)
    try:
        for decoder in decoders:
            decoded = decoder(PROMPTS, params(temperature))
            assert [len(row) for row in decoded.new_tokens] == [20, 20, 20]
    finally:
        target.generation_config = before


def test_the_models_own_generation_configs_come_back(pair):
    target, draft = pair
    before = target.generation_config, draft.generation_config
    peer_assisted(target, draft, num_draft_tokens=2)(PROMPTS[:1], params(num=3))
    assert (target.generation_config, draft.generation_config) == before
    assert not target._forward_pre_hooks


def test_the_peer_samples_from_the_whole_law(pair):
    """A leftover top_k, 50 by default, would show: V = 256 and T = 3 make the laws wide."""
    target, _ = pair
    prompt = PROMPTS[0]
    with torch.no_grad():
        logits = target(torch.tensor([prompt])).logits[0, -1] / 3.0
    likely = set(logits.topk(50).indices.tolist())
    with torch.random.fork_rng():
        torch.manual_seed(0)
        rows = peer_plain(target)([prompt] * 200, params(3.0, num=1)).new_tokens
    outside = sum(row[0] not in likely for row in rows) / len(rows)
    expected = 1 - float(torch.softmax(logits, -1).topk(50).values.sum())
    assert expected > 0.1
    assert outside == pytest.approx(expected, abs=4 * (expected * (1 - expected) / 200) ** 0.5)


def test_the_peer_drafts_as_many_tokens_as_ours(pair):
    target, draft = pair
    fed = []
    hook = target.register_forward_pre_hook(
        lambda _, args, kwargs: fed.append(kwargs["input_ids"].shape[1]), with_kwargs=True
    )
    peer_assisted(target, draft, num_draft_tokens=3)(PROMPTS[:1], params(num=30))
    hook.remove()
    # The first forward reads the prompt as well; the last has room for fewer tokens.
    assert fed[0] == len(PROMPTS[0]) + 3
    assert set(fed[1:-2]) == {4}
