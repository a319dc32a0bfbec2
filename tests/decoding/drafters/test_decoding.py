"""Every drafter at work: the output is the target's, and some proposals stand."""

import copy

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from selftrain.decoding.drafters.layers import LayerDrafter, first_layers
from selftrain.decoding.drafters.ngram import NGramDrafter
from selftrain.decoding.drafters.tree import TreeDrafter
from selftrain.decoding.drafters.vocabulary import VocabularyDrafter
from selftrain.decoding.params import SamplingParams
from selftrain.decoding.speculative import SpeculativeDecoder

ROWS = [[5, 6], [3, 4, 5], [9, 8, 7, 6], [4]]
IDS = torch.tensor([[0] * (4 - len(r)) + r for r in ROWS])
MASK = (IDS > 0).long()
NUM_NEW = 24


@pytest.fixture(scope="module")
def target(make_llama):
    """Three layers, the later ones damped, so that its first layers often agree with it."""
    model = make_llama(num_hidden_layers=3, sharpness=2.5).double()
    with torch.no_grad():
        for layer in model.model.layers[1:]:
            layer.self_attn.o_proj.weight *= 0.3
            layer.mlp.down_proj.weight *= 0.3
    return model


@pytest.fixture(params=["ngram", "layers", "vocabulary", "tree", "drawn tree"])
def drafter(request, target, char_tokenizer):
    if request.param == "ngram":
        return NGramDrafter()
    if request.param == "layers":
        return LayerDrafter(2)
    if "tree" in request.param:
        sampling = "top_k" if request.param == "tree" else "without_replacement"
        return TreeDrafter(first_layers(target, 2), (3, 2, 1, 1), sampling=sampling)
    # Its first layers as a model of their own, with other characters in place of every fourth.
    names = char_tokenizer.convert_ids_to_tokens(range(len(char_tokenizer)))
    vocab = {chr(0x100 + i) if i % 4 == 3 else name: i for i, name in enumerate(names)}
    inner = Tokenizer(models.WordLevel(vocab, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    other = PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="<eos>", unk_token="<unk>")
    return VocabularyDrafter(copy.deepcopy(first_layers(target, 2)), other, char_tokenizer)


@pytest.mark.parametrize("num_draft_tokens", [1, 4])
def test_greedy_output_is_the_targets_greedy_output(target, drafter, num_draft_tokens):
    want = target.generate(
        IDS, attention_mask=MASK, max_new_tokens=NUM_NEW, do_sample=False, pad_token_id=0
    )
    output = SpeculativeDecoder(target, drafter, num_draft_tokens=num_draft_tokens).generate(
        IDS, attention_mask=MASK, params=SamplingParams(max_new_tokens=NUM_NEW, temperature=0)
    )
    assert torch.equal(output.sequences, want[:, : output.sequences.shape[1]])
    assert (want[:, output.sequences.shape[1] :] == 0).all()
    assert output.stats.num_accepted > 0


@pytest.mark.parametrize("verifier", [None, "token", "coupled"])
def test_rows_do_not_depend_on_their_batch(target, drafter, verifier):
    decoder = SpeculativeDecoder(target, drafter, num_draft_tokens=3, verifier=verifier)
    params, seeds = SamplingParams(max_new_tokens=NUM_NEW, temperature=0.3), [11, 12, 13, 14]
    together = decoder.generate(IDS, attention_mask=MASK, params=params, seeds=seeds)
    assert together.stats.num_accepted > 0
    for row, prompt in enumerate(ROWS):
        alone = decoder.generate(torch.tensor([prompt]), params=params, seeds=[seeds[row]])
        assert alone.new_tokens()[0] == together.new_tokens()[row]


def test_coupled_output_is_plain_samplings(target, drafter):
    params, seeds = SamplingParams(max_new_tokens=NUM_NEW, temperature=0.3), [1, 2, 3, 4]
    outputs = [
        SpeculativeDecoder(target, drafter, num_draft_tokens=k, verifier="coupled").generate(
            IDS, attention_mask=MASK, params=params, seeds=seeds
        )
        for k in (0, 4)
    ]
    assert outputs[0].new_tokens() == outputs[1].new_tokens()
