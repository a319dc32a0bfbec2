"""Rows of a batch: together as alone, however and whenever they end."""

import copy

import pytest
import torch

from selftrain.decoding.drafters.ngram import NGramDrafter
from selftrain.decoding.params import SamplingParams
from selftrain.decoding.speculative import SpeculativeDecoder
from selftrain.ops.philox import gumbel

ROWS = [[5, 6], [3, 4, 5], [9, 8, 7, 6], [4], [6, 5, 6, 5, 6, 5, 6], [12]]
WIDTH = max(map(len, ROWS))
IDS = torch.tensor([[0] * (WIDTH - len(r)) + r for r in ROWS])
BATCH = {"input_ids": IDS, "attention_mask": (IDS > 0).long()}
SEEDS = [11, 12, 13, 14, 15, 2**62]
ENDS = [5, 10, 13, 20]


def alone(decoder, row, **arguments):
    return decoder.generate(torch.tensor([ROWS[row]]), seeds=[SEEDS[row]], **arguments)


@pytest.mark.parametrize("num_draft_tokens", [1, 3, 30])
@pytest.mark.parametrize("verifier", ["token", "block", "coupled"])
def test_rows_end_where_they_end_alone(pair, verifier, num_draft_tokens):
    """Several ids end a row, at any place of a block; the budget is less than a block of 30."""
    decoder = SpeculativeDecoder(*pair, num_draft_tokens=num_draft_tokens, verifier=verifier)
    params = SamplingParams(max_new_tokens=25)
    together = decoder.generate(**BATCH, params=params, seeds=SEEDS, eos_token_ids=ENDS)
    inside = 0
    for row, tokens in enumerate(together.new_tokens()):
        single = alone(decoder, row, params=params, eos_token_ids=ENDS, return_blocks=True)
        assert single.new_tokens()[0] == tokens
        assert not set(tokens[:-1]) & set(ENDS)
        last = single.blocks[-1]
        inside += tokens[-1] in last.drafted[: last.num_accepted]
    assert len(set(together.lengths.tolist())) >= 3
    if num_draft_tokens == 3:
        assert inside, "no row ended in the middle of a block"


@pytest.mark.parametrize("order", [[5, 4, 3, 2, 1, 0], [2, 2, 2], [3, 0]])
def test_neither_order_nor_company_matters(pair, order):
    decoder = SpeculativeDecoder(*pair, num_draft_tokens=4)
    params = SamplingParams(max_new_tokens=20)
    all_rows = decoder.generate(**BATCH, params=params, seeds=SEEDS).new_tokens()
    some = decoder.generate(
        IDS[order],
        attention_mask=BATCH["attention_mask"][order],
        params=params,
        seeds=[SEEDS[row] for row in order],
    )
    assert some.new_tokens() == [all_rows[row] for row in order]


def test_a_row_that_ends_at_once_leaves_the_others_alone(pair):
    decoder = SpeculativeDecoder(*pair, num_draft_tokens=4)
    params = SamplingParams(max_new_tokens=20)
    free = decoder.generate(**BATCH, params=params, seeds=SEEDS, eos_token_ids=())
    first = free.new_tokens()[2][0]
    cut = decoder.generate(**BATCH, params=params, seeds=SEEDS, eos_token_ids=first)
    assert cut.new_tokens()[2] == [first]
    for long, short in zip(free.new_tokens(), cut.new_tokens(), strict=True):
        end = long.index(first) + 1 if first in long else len(long)
        assert short == long[:end]


def test_rows_may_all_end_before_their_first_token(pair, char_tokenizer):
    """A stop string at the very beginning: nothing is kept, and the prompts come back as ids."""
    decoder = SpeculativeDecoder(*pair, tokenizer=char_tokenizer)
    params = SamplingParams(max_new_tokens=20, temperature=0)
    free = decoder.generate(IDS[2:3], params=params, attention_mask=BATCH["attention_mask"][2:3])
    stop = (char_tokenizer.decode(free.new_tokens()[0][:2]),)
    output = decoder.generate(
        IDS[2:3],
        attention_mask=BATCH["attention_mask"][2:3],
        params=SamplingParams(max_new_tokens=20, temperature=0, stop=stop),
    )
    assert output.lengths.tolist() == [0]
    assert output.new_tokens() == [[]]
    assert output.sequences.dtype == torch.long
    assert torch.equal(output.sequences, IDS[2:3])


def test_one_token_is_a_budget(pair):
    decoder = SpeculativeDecoder(*pair, num_draft_tokens=5)
    output = decoder.generate(
        **BATCH, params=SamplingParams(max_new_tokens=1, temperature=0), eos_token_ids=()
    )
    assert output.lengths.tolist() == [1] * len(ROWS)
    assert output.stats.num_drafted == 0


@pytest.mark.parametrize("cache", ["slots", "dynamic"])
def test_coupled_tokens_are_those_of_a_plain_loop(pair, cache):
    """Gumbel-max over uncached forwards of each row by itself; the decoder's code is not used."""
    target, draft = pair
    num_new, temperature = 20, 0.7
    want = []
    for row, seed in zip(ROWS, SEEDS, strict=True):
        text = list(row)
        for _ in range(num_new):
            with torch.no_grad():
                logits = target(input_ids=torch.tensor([text])).logits[0, -1]
            noise = gumbel(
                torch.tensor(seed), position=len(text), vocab_size=len(logits), dtype=torch.float64
            )
            text.append(int((logits / temperature + noise).argmax()))
        want.append(text[len(row) :])
    params = SamplingParams(max_new_tokens=num_new, temperature=temperature)
    for drafter in (draft, copy.deepcopy(draft).float(), NGramDrafter()):
        for num_draft_tokens in (0, 1, 5, 40, "auto"):
            decoder = SpeculativeDecoder(
                target, drafter, num_draft_tokens=num_draft_tokens, verifier="coupled", cache=cache
            )
            got = decoder.generate(**BATCH, params=params, seeds=SEEDS, eos_token_ids=())
            assert got.new_tokens() == want


@pytest.mark.parametrize("verifier", ["token", "block"])
@pytest.mark.parametrize("num_draft_tokens", [1, 4])
def test_sampled_tokens_do_not_depend_on_the_cache(pair, verifier, num_draft_tokens):
    params = SamplingParams(max_new_tokens=30, temperature=0.8)
    outputs = [
        SpeculativeDecoder(
            *pair, num_draft_tokens=num_draft_tokens, verifier=verifier, cache=cache
        ).generate(**BATCH, params=params, seeds=SEEDS)
        for cache in ("slots", "dynamic")
    ]
    assert outputs[0].new_tokens() == outputs[1].new_tokens()
    assert outputs[0].stats.num_accepted == outputs[1].stats.num_accepted > 0


def test_a_seed_gives_every_row_its_own(pair):
    decoder = SpeculativeDecoder(*pair)
    params = SamplingParams(max_new_tokens=20, seed=4)
    same = torch.tensor([[5, 6]] * 4)
    first, second = (decoder.generate(same, params=params).new_tokens() for _ in range(2))
    assert first == second
    assert len(set(map(tuple, first))) == 4


@pytest.mark.parametrize("place", ["head", "embedding", "layer"])
@pytest.mark.parametrize("verifier", [None, "token", "block", "coupled"])
def test_nan_in_the_target_is_an_error(make_pair, place, verifier):
    target, draft = make_pair(tie_word_embeddings=False)
    decoder = SpeculativeDecoder(target, draft, verifier=verifier)
    weight = {
        "head": target.lm_head.weight[7],
        "embedding": target.model.embed_tokens.weight[6],
        "layer": target.model.layers[1].mlp.down_proj.weight[0],
    }[place]
    weight.data.fill_(torch.nan)
    temperature = 0.0 if verifier is None else 1.0
    with pytest.raises(ValueError, match="the target's logits are NaN"):
        decoder.generate(
            torch.tensor([[5, 6], [8, 9]]),
            params=SamplingParams(max_new_tokens=8, temperature=temperature, seed=1),
        )


@pytest.mark.parametrize("value", [torch.inf, -torch.inf])
@pytest.mark.parametrize("verifier", [None, "token", "block", "coupled"])
def test_so_is_infinity(pair, value, verifier):
    """+inf for one token, or -inf for all."""

    def spoil(input_ids, scores):
        if value < 0:
            return scores + value
        return scores.index_fill(1, torch.tensor([4]), value)

    temperature = 0.0 if verifier is None else 1.0
    with pytest.raises(ValueError, match=r"\+inf or all -inf"):
        SpeculativeDecoder(*pair, verifier=verifier).generate(
            **BATCH,
            params=SamplingParams(max_new_tokens=8, temperature=temperature, seed=1),
            logits_processor=[spoil],
        )


@pytest.mark.parametrize("verifier", [None, "token", "block", "coupled"])
def test_nan_in_the_draft_costs_speed_alone(make_pair, verifier):
    """Greedy and coupled output stay what they were; sampled output is that of plain sampling."""
    target, draft = make_pair()
    decoder = SpeculativeDecoder(target, draft, num_draft_tokens=3, verifier=verifier)
    greedy = verifier is None
    params = SamplingParams(max_new_tokens=12, temperature=0.0 if greedy else 1.0)
    before = decoder.generate(**BATCH, params=params, seeds=SEEDS)
    draft.model.layers[0].mlp.down_proj.weight.data.fill_(torch.nan)
    after = decoder.generate(**BATCH, params=params, seeds=SEEDS)
    if verifier in (None, "coupled"):
        assert after.new_tokens() == before.new_tokens()
    else:
        assert after.stats.num_accepted == 0
        plain = SpeculativeDecoder(target, NGramDrafter(), num_draft_tokens=0)
        assert (
            after.new_tokens() == plain.generate(**BATCH, params=params, seeds=SEEDS).new_tokens()
        )
        assert torch.isfinite(torch.tensor(after.stats.total_overlap))


@pytest.mark.parametrize("verifier", [None, "token", "block", "coupled"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_runs(make_llama, verifier, dtype):
    target, draft = make_llama(sharpness=2.5).to(dtype), make_llama(sharpness=2.4).to(dtype)
    params = SamplingParams(max_new_tokens=20, temperature=0.0 if verifier is None else 1.0, seed=1)
    decoder = SpeculativeDecoder(target, draft, verifier=verifier, num_draft_tokens=3)
    output = decoder.generate(**BATCH, params=params, eos_token_ids=())
    assert output.lengths.tolist() == [20] * len(ROWS)
    assert output.stats.num_accepted > 0
