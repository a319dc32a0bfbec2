"""Encoder-decoder models: rows are decoder sequences, each with a source of its own."""

import pytest
import torch

from selftrain.decoding.drafters.ngram import NGramDrafter
from selftrain.decoding.params import SamplingParams
from selftrain.decoding.speculative import SpeculativeDecoder
from selftrain.ops.philox import gumbel

SOURCES = [[5, 6, 7, 1], [9, 8, 7, 6, 5, 4, 1], [20, 1]]
WIDTH = max(map(len, SOURCES))
IDS = torch.tensor([[*row, *[0] * (WIDTH - len(row))] for row in SOURCES])
BATCH = {"input_ids": IDS, "attention_mask": (IDS > 0).long()}
NUM_NEW = 16


@pytest.fixture(scope="module", params=["t5", "bart", "marian"])
def pair(request, make_model):
    sharpness = 1.2 if request.param == "t5" else 6.0
    target = make_model(request.param, sharpness=sharpness).double()
    draft = make_model(request.param, sharpness=sharpness).double()
    rng = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in draft.parameters():
            noise = torch.randn(parameter.shape, generator=rng, dtype=parameter.dtype)
            parameter.add_(noise * parameter.std().nan_to_num() * 0.2)
    return target, draft


@pytest.mark.parametrize("num_draft_tokens", [0, 1, 5, 40, "auto"])
def test_greedy_output_is_that_of_transformers(pair, num_draft_tokens):
    target, _ = pair
    want = target.generate(
        **BATCH, max_new_tokens=NUM_NEW, do_sample=False, forced_eos_token_id=None
    )
    decoder = SpeculativeDecoder(*pair, num_draft_tokens=num_draft_tokens)
    got = decoder.generate(**BATCH, params=SamplingParams(max_new_tokens=NUM_NEW, temperature=0))
    assert torch.equal(got.sequences, want[:, : got.sequences.shape[1]])
    assert (want[:, got.sequences.shape[1] :] == 0).all()
    if num_draft_tokens == 5:
        assert 0 < got.stats.acceptance_rate <= 1


def test_the_outputs_of_these_tests_depend_on_the_source(pair):
    output = SpeculativeDecoder(*pair).generate(
        **BATCH, params=SamplingParams(max_new_tokens=NUM_NEW, temperature=0), eos_token_ids=()
    )
    assert len(set(map(tuple, output.new_tokens()))) > 1


@pytest.mark.parametrize("verifier", ["token", "block", "coupled"])
def test_rows_do_not_depend_on_their_batch(pair, verifier):
    decoder = SpeculativeDecoder(*pair, num_draft_tokens=3, verifier=verifier)
    params, seeds = SamplingParams(max_new_tokens=NUM_NEW), [1, 2, 3]
    together = decoder.generate(**BATCH, params=params, seeds=seeds)
    for row, source in enumerate(SOURCES):
        alone = decoder.generate(torch.tensor([source]), params=params, seeds=[seeds[row]])
        assert alone.new_tokens()[0] == together.new_tokens()[row]


def test_coupled_tokens_are_those_of_a_plain_loop(pair):
    target, draft = pair
    params, seeds, want = SamplingParams(max_new_tokens=8), [7, 8, 9], []
    for source, seed in zip(SOURCES, seeds, strict=True):
        text = [target.config.decoder_start_token_id]
        for _ in range(8):
            with torch.no_grad():
                logits = target(
                    input_ids=torch.tensor([source]), decoder_input_ids=torch.tensor([text])
                ).logits[0, -1]
            noise = gumbel(
                torch.tensor(seed), position=len(text), vocab_size=len(logits), dtype=torch.float64
            )
            text.append(int((logits + noise).argmax()))
        want.append(text[1:])
    for drafter in (draft, NGramDrafter()):
        decoder = SpeculativeDecoder(target, drafter, num_draft_tokens=3, verifier="coupled")
        got = decoder.generate(**BATCH, params=params, seeds=seeds, eos_token_ids=())
        assert got.new_tokens() == want


def test_sequences_begin_with_the_decoders_own_token(pair):
    output = SpeculativeDecoder(*pair).generate(
        **BATCH, params=SamplingParams(max_new_tokens=4, temperature=0), eos_token_ids=()
    )
    assert output.sequences.shape == (3, 5)
    assert (output.sequences[:, 0] == pair[0].config.decoder_start_token_id).all()


def test_a_model_that_does_not_say_how_to_begin_is_refused(make_model):
    model = make_model("t5")
    decoder = SpeculativeDecoder(model, model)
    model.config.decoder_start_token_id = model.generation_config.decoder_start_token_id = None
    with pytest.raises(ValueError, match="no decoder_start_token_id"):
        decoder.generate(**BATCH, params=SamplingParams(max_new_tokens=4))
