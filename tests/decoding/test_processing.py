"""Logits processors inside a block: each place sees its own prefix, as in plain decoding."""

import itertools

import pytest
import torch
from scipy import stats
from transformers import (
    ForcedEOSTokenLogitsProcessor,
    LogitsProcessorList,
    MinNewTokensLengthLogitsProcessor,
    NoRepeatNGramLogitsProcessor,
    PrefixConstrainedLogitsProcessor,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
)
from transformers.generation.logits_process import (
    SynthIDTextWatermarkLogitsProcessor,
    UnbatchedClassifierFreeGuidanceLogitsProcessor,
)

from selftrain.decoding.drafters.ngram import NGramDrafter
from selftrain.decoding.params import SamplingParams
from selftrain.decoding.processing import process
from selftrain.decoding.speculative import SpeculativeDecoder

ROWS = [[5, 6], [3, 4, 5], [9, 8, 7, 6], [4]]
IDS = torch.tensor([[0] * (4 - len(r)) + r for r in ROWS])
MASK = (IDS > 0).long()
NUM_NEW = 16
GREEDY = SamplingParams(max_new_tokens=NUM_NEW, temperature=0)


class AfterOddSum:
    """Bars every third token where the tokens before it have an odd sum."""

    def __init__(self):
        self.seen = []

    def __call__(self, input_ids, scores):
        self.seen.append(tuple(input_ids[0].tolist()))
        barred = torch.arange(scores.shape[-1]) % 3 == input_ids.sum(1, keepdim=True) % 2
        return scores.masked_fill(barred, -torch.inf)


PROCESSORS = {
    "repetition": lambda n: RepetitionPenaltyLogitsProcessor(1.6),
    "ngram": lambda n: NoRepeatNGramLogitsProcessor(2),
    "minimum": lambda n: MinNewTokensLengthLogitsProcessor(n, 9, [1, 10], device="cpu"),
    "forced": lambda n: ForcedEOSTokenLogitsProcessor(n + NUM_NEW, 1, device="cpu"),
    "custom": lambda n: AfterOddSum(),
}


@pytest.fixture(params=["model", "ngram"])
def decoder(request, pair):
    target, draft = pair
    drafter = draft if request.param == "model" else NGramDrafter()
    return SpeculativeDecoder(target, drafter, num_draft_tokens=4)


@pytest.mark.parametrize("name", PROCESSORS)
def test_greedy_output_is_that_of_plain_decoding(decoder, name):
    """Row by row in one batch: those whose processors count tokens each get their own."""
    for row in ROWS:
        processors = LogitsProcessorList([PROCESSORS[name](len(row))])
        want = decoder.target.generate(
            torch.tensor([row]),
            logits_processor=processors,
            max_new_tokens=NUM_NEW,
            do_sample=False,
            eos_token_id=[1, 10],
        )
        got = decoder.generate(
            torch.tensor([row]),
            logits_processor=processors,
            params=GREEDY,
            eos_token_ids=[1, 10],
        )
        assert got.sequences.tolist() == want.tolist()


@pytest.mark.parametrize("name", ["repetition", "ngram", "custom"])
def test_a_ragged_batch_is_processed_row_by_row(decoder, name):
    processors = [PROCESSORS[name](0)]
    together = decoder.generate(
        IDS, attention_mask=MASK, params=GREEDY, logits_processor=processors
    )
    for row, tokens in zip(ROWS, together.new_tokens(), strict=True):
        alone = decoder.target.generate(
            torch.tensor([row]),
            logits_processor=LogitsProcessorList(processors),
            max_new_tokens=NUM_NEW,
            do_sample=False,
        )
        assert alone[0, len(row) :].tolist() == tokens


@pytest.mark.parametrize("verifier", ["token", "block", "coupled"])
def test_processors_see_texts_that_exist(decoder, verifier):
    """Every prefix is a row's prompt, what it gained, and proposals; nothing padded or void."""
    processor = AfterOddSum()
    decoder.verifier = verifier
    output = decoder.generate(
        IDS,
        attention_mask=MASK,
        params=SamplingParams(max_new_tokens=NUM_NEW, seed=1),
        logits_processor=[processor],
        return_blocks=True,
        eos_token_ids=(),
    )
    texts, want = [list(row) for row in ROWS], set()
    for block in output.blocks:
        text = texts[block.row]
        want |= {(*text, *block.drafted[:n]) for n in range(len(block.drafted) + 1)}
        text += [*block.drafted[: block.num_accepted], block.next_token]
    extra = set(processor.seen) - want
    # A row that has less room than others is asked for as many proposals; they are void later.
    assert all(len(prefix) >= NUM_NEW for prefix in extra)
    assert want <= set(processor.seen)


def test_behind_a_void_token_nothing_is_processed():
    seen = []

    def record(input_ids, scores):
        seen.append(input_ids.tolist())
        return scores + 1

    logits = torch.zeros(2, 3, 5)
    scores = process([record], logits, [[7, 8, 1, 2], [9, -1, -1]])
    assert seen == [[[7, 8]], [[7, 8, 1]], [[7, 8, 1, 2]], [[9]]]
    assert scores[:, :, 0].tolist() == [[1, 1, 1], [1, 0, 0]]


@pytest.mark.parametrize("verifier", ["token", "block", "coupled"])
def test_sampled_texts_follow_the_processed_law(make_llama, verifier):
    """G-test over all texts of three tokens; 3 cases at p > 1e-4, the seed is fixed."""
    vocab, length, n = 4, 3, 2500
    shape = {"vocab_size": vocab, "sharpness": 4.0, "tie_word_embeddings": False}
    target = make_llama(**shape).double()
    draft = make_llama(**shape, seed=1, num_hidden_layers=1).double()
    processor, params = AfterOddSum(), SamplingParams(max_new_tokens=length, seed=5)
    output = SpeculativeDecoder(target, draft, num_draft_tokens=2, verifier=verifier).generate(
        torch.tensor([[2, 1]]).expand(n, -1),
        params=params,
        logits_processor=[processor],
        eos_token_ids=(),
    )
    texts = torch.tensor(list(itertools.product(range(vocab), repeat=length)))
    rows = torch.cat([torch.tensor([[2, 1]]).expand(len(texts), -1), texts], dim=1)
    with torch.no_grad():
        logits = target(input_ids=rows).logits
    law = torch.ones(len(texts), dtype=torch.float64)
    for place in range(length):
        for index, row in enumerate(rows):
            scores = processor(row[None, : 2 + place], logits[index : index + 1, 1 + place])
            law[index] *= scores.softmax(-1)[0, texts[index, place]]
    places = vocab ** torch.arange(length - 1, -1, -1)
    counts = (output.sequences[:, 2:] * places).sum(1).bincount(minlength=len(texts)).double()
    assert (counts[law == 0] == 0).all()
    common = n * law >= 5
    observed = torch.cat([counts[common], counts[~common].sum()[None]])
    wanted = torch.cat([n * law[common], n * law[~common].sum()[None]])
    result = stats.power_divergence(observed, wanted, lambda_="log-likelihood")
    assert result.pvalue > 1e-4
    assert 0.05 < output.stats.acceptance_rate < 0.98


def test_a_constraint_holds_whatever_the_draft_proposes(pair):
    """An n-gram draft knows of no constraint: what it proposes against it must fall."""

    def allowed(row, text):
        return [3 + (int(text[-1]) + k) % 7 for k in range(2)]

    decoder = SpeculativeDecoder(pair[0], NGramDrafter(), num_draft_tokens=4)
    output = decoder.generate(
        torch.tensor([[5, 6, 5, 6]]),
        params=SamplingParams(max_new_tokens=20, seed=1),
        logits_processor=[PrefixConstrainedLogitsProcessor(allowed, num_beams=1)],
        eos_token_ids=(),
    )
    text = output.sequences[0, 3:].tolist()
    assert all(b in allowed(0, [a]) for a, b in itertools.pairwise(text))


def test_a_processor_that_counts_rows_takes_one_row(pair):
    constraint = PrefixConstrainedLogitsProcessor(lambda row, text: [row + 3], num_beams=1)
    with pytest.raises(ValueError, match=r"PrefixConstrained.*each of the 4 .*one row at a time"):
        SpeculativeDecoder(*pair).generate(
            IDS, attention_mask=MASK, params=GREEDY, logits_processor=[constraint]
        )


def test_a_stateful_processor_is_refused(pair):
    stateful = [
        UnbatchedClassifierFreeGuidanceLogitsProcessor(1.5, pair[0]),
        SynthIDTextWatermarkLogitsProcessor(2, [1, 2], 4, 0, 4, device="cpu"),
    ]
    for processor in stateful:
        with pytest.raises(ValueError, match=rf"{type(processor).__name__}, which keeps state"):
            SpeculativeDecoder(*pair).generate(
                IDS, attention_mask=MASK, params=GREEDY, logits_processor=[processor]
            )


@pytest.mark.parametrize("warper", [TemperatureLogitsWarper(0.7), TopKLogitsWarper(3)])
def test_a_warper_is_refused_with_the_way_out(pair, warper):
    with pytest.raises(ValueError, match=rf"{type(warper).__name__}; say it in SamplingParams"):
        SpeculativeDecoder(*pair).generate(
            IDS, attention_mask=MASK, params=GREEDY, logits_processor=[warper]
        )


def test_processors_that_bar_everything_are_an_error(pair):
    with pytest.raises(ValueError, match="all -inf"):
        SpeculativeDecoder(*pair).generate(
            IDS,
            attention_mask=MASK,
            params=GREEDY,
            logits_processor=[lambda ids, scores: scores - torch.inf],
        )
