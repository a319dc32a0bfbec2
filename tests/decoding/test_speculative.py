import pytest
import torch

from selftrain.decoding.params import SamplingParams
from selftrain.decoding.sampler import HFSampler
from selftrain.decoding.speculative import SpeculativeDecoder
from selftrain.ops.lenience import (
    Lenience,
    LeviathanLenience,
    MixtureLenience,
    TypicalAcceptance,
)

IDS = torch.tensor([[0, 0, 5, 6], [0, 3, 4, 5], [9, 8, 7, 6], [0, 0, 0, 4]])
MASK = (IDS > 0).long()
ROWS = [[5, 6], [3, 4, 5], [9, 8, 7, 6], [4]]


def greedy(**changes):
    return SamplingParams(**{"max_new_tokens": 30, "temperature": 0, **changes})


@pytest.mark.parametrize("num_draft_tokens", [0, 1, 2, 5, 40])
def test_greedy_output_is_the_targets_greedy_output(pair, num_draft_tokens):
    target, draft = pair
    want = target.generate(
        IDS, attention_mask=MASK, max_new_tokens=30, do_sample=False, pad_token_id=0
    )
    decoder = SpeculativeDecoder(target, draft, num_draft_tokens=num_draft_tokens)
    got = decoder.generate(IDS, attention_mask=MASK, params=greedy())
    assert torch.equal(got.sequences, want[:, : got.sequences.shape[1]])
    assert (want[:, got.sequences.shape[1] :] == 0).all()


def test_the_draft_of_these_tests_is_neither_useless_nor_perfect(pair):
    output = SpeculativeDecoder(*pair).generate(
        IDS, attention_mask=MASK, params=SamplingParams(max_new_tokens=60, seed=0)
    )
    assert 0.2 < output.stats.acceptance_rate < 0.95


def test_without_drafts_it_samples_what_the_sampler_samples(pair, char_tokenizer):
    target, draft = pair
    params = SamplingParams(max_new_tokens=30, seed=5, top_p=0.9)
    output = SpeculativeDecoder(target, draft, num_draft_tokens=0).generate(
        IDS, attention_mask=MASK, params=params
    )
    plain = HFSampler(target, char_tokenizer).sample(ROWS, params=params)
    assert output.new_tokens() == [list(c.token_ids) for (c,) in plain]


@pytest.mark.parametrize("num_draft_tokens", [1, 4])
def test_rows_do_not_depend_on_their_batch(pair, num_draft_tokens):
    decoder = SpeculativeDecoder(*pair, num_draft_tokens=num_draft_tokens)
    params, seeds = SamplingParams(max_new_tokens=40), [11, 12, 13, 14]
    together = decoder.generate(IDS, attention_mask=MASK, params=params, seeds=seeds)
    for row, prompt in enumerate(ROWS):
        alone = decoder.generate(torch.tensor([prompt]), params=params, seeds=[seeds[row]])
        assert alone.new_tokens()[0] == together.new_tokens()[row]


def test_right_padded_prompts_give_the_same_tokens(pair):
    decoder = SpeculativeDecoder(*pair)
    right = torch.tensor([[*r, *[0] * (4 - len(r))] for r in ROWS])
    outputs = [
        decoder.generate(ids, attention_mask=(ids > 0).long(), params=greedy())
        for ids in (IDS, right)
    ]
    assert outputs[0].new_tokens() == outputs[1].new_tokens()


def test_a_perfect_draft_is_accepted_whole(pair):
    target, _ = pair
    decoder = SpeculativeDecoder(target, target, num_draft_tokens=4)
    params = SamplingParams(max_new_tokens=40, seed=1)
    output = decoder.generate(IDS, attention_mask=MASK, params=params, eos_token_ids=())
    assert output.stats.accepted_fraction == 1.0
    assert output.stats.block_efficiency == 5.0
    assert output.stats.num_target_calls == 4 * 40 / 5


def test_tiny_temperature_tends_to_greedy(pair):
    decoder = SpeculativeDecoder(*pair)
    cold = decoder.generate(IDS, attention_mask=MASK, params=greedy(temperature=1e-6, seed=0))
    assert (
        cold.new_tokens()
        == decoder.generate(IDS, attention_mask=MASK, params=greedy()).new_tokens()
    )


def test_counts_are_consistent_with_what_was_emitted(pair):
    decoder = SpeculativeDecoder(*pair, num_draft_tokens=3)
    output = decoder.generate(
        IDS,
        attention_mask=MASK,
        params=SamplingParams(max_new_tokens=50, seed=2),
        eos_token_ids=(),
        return_blocks=True,
    )
    stats = output.stats
    assert output.lengths.tolist() == [50] * 4
    assert stats.num_accepted + stats.num_target_calls == 200
    assert stats.num_accepted <= stats.num_tested <= stats.num_drafted
    assert len(output.blocks) == stats.num_target_calls
    for row in range(4):
        replayed = []
        for block in (b for b in output.blocks if b.row == row):
            replayed += [*block.drafted[: block.num_accepted], block.next_token]
        assert replayed == output.new_tokens()[row]


def test_empirical_acceptance_lies_near_the_analytic_mean(pair):
    decoder = SpeculativeDecoder(*pair, num_draft_tokens=3, verifier="token")
    output = decoder.generate(
        torch.tensor([[5, 6]] * 64),
        params=SamplingParams(max_new_tokens=60, seed=3),
        eos_token_ids=(),
    )
    stats = output.stats
    sigma = (stats.analytic_acceptance * (1 - stats.analytic_acceptance) / stats.num_tested) ** 0.5
    assert abs(stats.acceptance_rate - stats.analytic_acceptance) < 4 * sigma


def test_an_eos_inside_a_block_ends_the_row_there(pair):
    target, _ = pair
    decoder = SpeculativeDecoder(target, target, num_draft_tokens=7)  # blocks of eight
    free = decoder.generate(IDS, attention_mask=MASK, params=greedy(), eos_token_ids=())
    ends = [row[n] for row, n in zip(free.new_tokens(), (2, 4, 5, 11), strict=True)]
    cut = decoder.generate(IDS, attention_mask=MASK, params=greedy(), eos_token_ids=ends)
    for long, short in zip(free.new_tokens(), cut.new_tokens(), strict=True):
        first = next(i for i, t in enumerate(long) if t in ends)
        assert short == long[: first + 1]


def test_a_stop_string_across_the_border_of_blocks_is_found(pair, char_tokenizer):
    target, draft = pair
    decoder = SpeculativeDecoder(target, draft, tokenizer=char_tokenizer, num_draft_tokens=2)
    ids = torch.tensor([ROWS[2]])
    free = decoder.generate(ids, params=greedy(), eos_token_ids=())
    text = char_tokenizer.decode(free.new_tokens()[0])
    for start in range(6, 12):
        stop = text[start : start + 4]
        cut = decoder.generate(ids, params=greedy(stop=(stop,)), eos_token_ids=())
        assert char_tokenizer.decode(cut.new_tokens()[0]) == text[: text.index(stop)]


def test_it_reaches_the_last_position_of_a_learned_table(make_model):
    model = make_model("gpt2", n_positions=48).double()
    room = 48 - 4  # the table's next row would be an IndexError
    output = SpeculativeDecoder(model, model, num_draft_tokens=6).generate(
        IDS, attention_mask=MASK, params=greedy(max_new_tokens=room), eos_token_ids=()
    )
    assert output.lengths.tolist() == [room] * 4


def test_models_that_differ_by_padding_work_with_their_tokenizer(make_llama, char_tokenizer):
    vocab = len(char_tokenizer)
    for target_size, draft_size in ((vocab + 8, vocab), (vocab, vocab + 8)):
        target = make_llama(vocab_size=target_size, sharpness=2.5).double()
        draft = make_llama(vocab_size=draft_size, sharpness=2.5, seed=1).double()
        decoder = SpeculativeDecoder(target, draft, tokenizer=char_tokenizer)
        got = decoder.generate(torch.tensor([[5, 6]]), params=greedy())
        want = target.generate(
            torch.tensor([[5, 6]]), max_new_tokens=30, do_sample=False, pad_token_id=0
        )
        assert got.sequences.tolist() == want.tolist()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"attention_mask": torch.tensor([[1, 0, 1, 1]] * 4)}, "gaps"),
        ({"attention_mask": torch.zeros(4, 4)}, "empty"),
        ({"attention_mask": torch.ones(4, 3)}, "shape"),
        ({"params": SamplingParams(max_new_tokens=500)}, "the target has 128"),
        ({"params": greedy(stop=("a",))}, "tokenizer"),
        ({"params": greedy(), "seeds": [1]}, "seeds"),
    ],
)
def test_bad_calls_are_named(pair, change, message):
    with pytest.raises(ValueError, match=message):
        SpeculativeDecoder(*pair).generate(IDS, **{"attention_mask": MASK, **change})


def test_an_empty_prompt_is_refused(pair):
    with pytest.raises(ValueError, match="empty"):
        SpeculativeDecoder(*pair).generate(torch.empty(1, 0, dtype=torch.long))


def test_bad_pairs_are_refused(pair, make_llama, make_model):
    target, draft = pair
    with pytest.raises(ValueError, match="num_draft_tokens"):
        SpeculativeDecoder(target, draft, num_draft_tokens=-1)
    with pytest.raises(ValueError, match="one vocabulary"):
        SpeculativeDecoder(target, make_llama(vocab_size=30))
    with pytest.raises(TypeError, match="the draft cannot be used"):
        SpeculativeDecoder(target, make_model("mamba"))


def test_nan_logits_are_an_error(make_llama):
    target, draft = make_llama(), make_llama(seed=1)
    decoder = SpeculativeDecoder(target, draft)
    target.lm_head.weight.data[3] = float("nan")
    with pytest.raises(ValueError, match="NaN"):
        decoder.generate(torch.tensor([[5]]), params=greedy())


WINDOWED = ["mistral", "gemma2", "gemma3"]


@pytest.mark.parametrize(
    ("name", "cache"),
    [
        *[(name, "slots") for name in [*WINDOWED, "gpt2", "opt", "qwen3", "gptneox"]],
        *[(name, "dynamic") for name in ["gpt2", "opt", "qwen3", "bloom", "falcon"]],
    ],
)
@pytest.mark.parametrize("num_draft_tokens", [0, 1, 5, 40, "auto"])
def test_greedy_output_of_every_architecture_is_that_of_transformers(
    make_model, name, cache, num_draft_tokens
):
    """Ragged rows that outgrow the window of 4; the draft is the target, its head disturbed.

    Each row alone is the oracle: in a padded batch transformers' own Gemma 2 and Bloom differ from
    their uncached forwards.
    """
    target, draft = (make_model(name, sharpness=2.0).double() for _ in range(2))
    rng = torch.Generator().manual_seed(0)
    embedding = draft.get_input_embeddings().weight
    with torch.no_grad():
        noise = torch.randn(embedding.shape, generator=rng, dtype=embedding.dtype)
        embedding += 0.2 * embedding.std() * noise
    decoder = SpeculativeDecoder(target, draft, num_draft_tokens=num_draft_tokens, cache=cache)
    got = decoder.generate(IDS, attention_mask=MASK, params=greedy(max_new_tokens=20))
    for prompt, tokens in zip(ROWS, got.new_tokens(), strict=True):
        want = target.generate(torch.tensor([prompt]), max_new_tokens=20, do_sample=False)
        assert want[0, len(prompt) :].tolist() == tokens
    if num_draft_tokens == 5:
        assert got.stats.num_accepted > 0


RULES = [
    Lenience(epsilon=0.5),
    Lenience(epsilon=0.5, kind="square", residual="p-lq"),
    Lenience(epsilon=0.5, kind="exponential"),
    LeviathanLenience(lenience=0.5),
    MixtureLenience(weight=0.3),
    TypicalAcceptance(),
]


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("rule", RULES, ids=lambda rule: type(rule).__name__)
def test_lossy_rules_say_so_and_bound_the_distance(pair, rule, temperature):
    params = SamplingParams(max_new_tokens=3, temperature=temperature, seed=1)
    many = torch.tensor([[5, 6]] * 16)
    exact, lossy = (
        SpeculativeDecoder(*pair, lenience=lenience, num_draft_tokens=2)
        .generate(many, params=params)
        .stats
        for lenience in (None, rule)
    )
    assert exact.lossless
    assert exact.tv_bound == 0
    assert not lossy.lossless
    assert 0 < lossy.tv_bound <= 1 or temperature == 0
    assert not (exact + lossy).lossless
    assert (exact + lossy).tv_bound == lossy.tv_bound
    long = SamplingParams(max_new_tokens=60, temperature=1.0, seed=1)
    decoder = SpeculativeDecoder(*pair, lenience=rule)
    assert decoder.generate(many, params=long).stats.tv_bound <= 1


@pytest.mark.parametrize("temperature", [0.0, 0.7])
@pytest.mark.parametrize(
    ("rule", "verifier"),
    [
        *[(Lenience(epsilon=1.0, kind=kind), "token") for kind in ("linear", "square")],
        (Lenience(epsilon=1.0, kind="exponential", residual="p-lq"), "token"),
        (LeviathanLenience(lenience=1.0), "token"),
        (MixtureLenience(weight=0.0), "token"),
        (MixtureLenience(weight=0.0), "block"),
    ],
)
def test_a_rule_without_lenience_is_the_exact_one_token_for_token(
    pair, rule, verifier, temperature
):
    params = SamplingParams(max_new_tokens=40, temperature=temperature, seed=9)
    exact, lossless = (
        SpeculativeDecoder(*pair, verifier=verifier, lenience=lenience).generate(
            IDS, attention_mask=MASK, params=params
        )
        for lenience in (None, rule)
    )
    assert lossless.new_tokens() == exact.new_tokens()
    assert lossless.stats.num_accepted == exact.stats.num_accepted
    assert lossless.stats.lossless
    assert lossless.stats.tv_bound == 0


@pytest.mark.parametrize("verifier", ["token", "block", "coupled"])
def test_statistics_are_sums_over_blocks(pair, verifier):
    decoder = SpeculativeDecoder(*pair, num_draft_tokens=4, verifier=verifier)
    params = SamplingParams(max_new_tokens=33, seed=2)
    output = decoder.generate(
        IDS, attention_mask=MASK, params=params, eos_token_ids=(), return_blocks=True
    )
    stats, blocks = output.stats, output.blocks
    assert stats.num_target_calls == len(blocks)
    assert stats.num_drafted == sum(len(b.drafted) for b in blocks)
    assert stats.num_accepted == sum(b.num_accepted for b in blocks)
    assert stats.num_tested == sum(min(b.num_accepted + 1, len(b.drafted)) for b in blocks)
    assert stats.num_accepted + len(blocks) == int(output.lengths.sum()) == 4 * 33
    assert stats.acceptance_rate == stats.num_accepted / stats.num_tested
    assert stats.accepted_fraction == stats.num_accepted / stats.num_drafted
    assert stats.block_efficiency == 4 * 33 / len(blocks)
    assert 0 < stats.analytic_acceptance <= 1
    assert all(len(b.drafted) <= 4 for b in blocks)
