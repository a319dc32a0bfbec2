import copy

import pytest
import torch
from transformers import NoRepeatNGramLogitsProcessor, RepetitionPenaltyLogitsProcessor

from selftrain.decoding.cache import SlotCache
from selftrain.decoding.drafters.layers import first_layers
from selftrain.decoding.drafters.protocol import Rows, Setting
from selftrain.decoding.drafters.tree import (
    TreeDrafter,
    tells_slots_from_positions,
    tree_parents,
)
from selftrain.decoding.noise import Noise
from selftrain.decoding.params import SamplingParams
from selftrain.decoding.speculative import SpeculativeDecoder
from selftrain.decoding.tree import TreeSteps, node_paths, tree_rule_for

PROMPTS = [[5, 6], [3, 4, 5, 9, 8], [7]]


def decode(target, drafter, ids, **settings):
    params = SamplingParams(**{"max_new_tokens": 24, "temperature": 0, **settings.pop("law", {})})
    settings = {"eos_token_ids": (), **settings}
    depth = settings.pop("num_draft_tokens", 5)
    decoder = SpeculativeDecoder(target, drafter, num_draft_tokens=depth)
    return decoder.generate(torch.tensor(ids), params=params, **settings)


@pytest.fixture(scope="module")
def target(make_llama):
    return make_llama(num_hidden_layers=3, sharpness=2.5).double()


@pytest.fixture(scope="module")
def draft(target):
    return copy.deepcopy(first_layers(target, 2))


def test_the_shape_of_a_tree_follows_its_branching():
    assert tree_parents((2, 1)) == (-1, -1, 0, 1)
    assert tree_parents((3, 2)) == (-1, -1, -1, 0, 0, 1, 1, 2, 2)
    assert node_paths((-1, -1, 0, 2)) == [(), (0,), (1,), (0, 2), (0, 2, 3)]
    assert tree_parents(()) == ()


@pytest.mark.parametrize("sampling", ["top_k", "without_replacement"])
def test_every_node_is_scored_as_its_own_path_and_the_one_that_stands_is_kept(
    target, draft, sampling
):
    """All laws of all nodes, of draft and target, block after block, against uncached forwards."""
    branching, params = (3, 2, 1), SamplingParams(max_new_tokens=60, temperature=0.4)
    rule = tree_rule_for(params, None, sampling)
    cache = SlotCache(target, capacity=90)
    setting = Setting(PROMPTS, 90, params, cache, target.config.vocab_size)
    texts, checked = [list(p) for p in PROMPTS], []

    def check(model, logits, tokens, paths):
        for row, text in enumerate(texts):
            for place, path in enumerate(paths):
                line = torch.tensor([[*text, *(int(tokens[row, i]) for i in path)]])
                want = model(input_ids=line).logits[0, -1]
                torch.testing.assert_close(logits[row, place], want, atol=1e-9, rtol=0)
        checked.append(len(paths))

    class Checked:
        def choose(self, logits, noise, level):
            check(draft, logits, level.tokens, node_paths(level.parents)[-logits.shape[1] :])
            return rule.choose(logits, noise, level)

        def judge(self, logits, drawn, noise):
            check(target, logits, drawn.tokens, node_paths(drawn.parents))
            return rule.judge(logits, drawn, noise)

    with torch.no_grad():
        cache.prefill([p[:-1] for p in PROMPTS])
        session = TreeDrafter(draft, branching, sampling=sampling).start(setting)
        steps = TreeSteps(session, Checked())
        noise = Noise(torch.tensor([1, 2, 3]), steps.num_nodes(3) + 1)
        accepted = 0
        for _ in range(5):
            lengths = tuple(map(len, texts))
            tokens = torch.tensor([[*t, *([0] * (90 - len(t)))] for t in texts])
            rows = Rows(tokens, torch.tensor(lengths), torch.tensor([80] * 3), lengths)
            outcome = steps.block(rows, depth=3, noise=noise.at(lengths, steps.num_nodes(3) + 1))
            for row, text in enumerate(texts):
                kept = int(outcome.verdict.num_accepted[row])
                text += outcome.draft.tokens[row, :kept].tolist()
                text.append(int(outcome.verdict.next_tokens[row]))
                accepted += kept
    assert checked == [1, 3, 6, 16] * 5
    assert accepted > 5


@pytest.mark.parametrize(
    "processor", [RepetitionPenaltyLogitsProcessor(1.8), NoRepeatNGramLogitsProcessor(2)]
)
def test_processors_see_the_path_of_each_node(target, draft, processor):
    ids, settings = [[3, 4, 5], [9, 9, 8]], {"logits_processor": [processor]}
    plain = decode(target, TreeDrafter(draft), ids, num_draft_tokens=0, **settings)
    tree = decode(target, TreeDrafter(draft), ids, **settings)
    assert tree.new_tokens() == plain.new_tokens()
    assert tree.new_tokens() != decode(target, TreeDrafter(draft), ids).new_tokens()
    assert tree.stats.num_accepted > 0


@pytest.mark.parametrize("name", ["gpt2", "qwen3", "mistral"])
def test_other_models_decode_greedily_to_the_end_of_their_positions(make_model, name):
    """Mistral sees four tokens, gpt2 has a table of positions; children beyond V are void."""
    sizes = {"gpt2": {"n_positions": 32}, "mistral": {"sliding_window": 4}}.get(name, {})
    model = make_model(name, **sizes).double()
    ids = [[3, 4, 5], [9, 9, 8]]
    want = model.generate(torch.tensor(ids), max_new_tokens=29, do_sample=False, pad_token_id=0)
    for branching in ((3, 2, 1), (70,)):
        output = decode(model, TreeDrafter(model, branching), ids, law={"max_new_tokens": 29})
        assert output.sequences.tolist() == want.tolist()
        assert output.stats.block_efficiency > 1.9


def test_more_children_stand_more_often(target, draft):
    law = {"max_new_tokens": 40, "temperature": 1.0, "seed": 3}
    chain, wide, drawn = (
        decode(target, drafter, [[5, 6]] * 32, law=law).stats
        for drafter in (
            TreeDrafter(draft, (1, 1)),
            TreeDrafter(draft, (4, 4)),
            TreeDrafter(draft, (4, 4), sampling="without_replacement"),
        )
    )
    assert wide.block_efficiency > 1.1 * chain.block_efficiency
    assert drawn.block_efficiency > 1.1 * chain.block_efficiency
    for stats in (chain, wide, drawn):
        rate, n = stats.analytic_acceptance, stats.num_tested
        assert abs(stats.acceptance_rate - rate) < 4 * (rate * (1 - rate) / n) ** 0.5
        assert stats.num_accepted + stats.num_target_calls >= 32 * 40
        assert stats.num_tested <= stats.num_drafted


def test_blocks_tell_the_path_that_stood(target, draft):
    output = decode(target, TreeDrafter(draft), [[5, 6], [3, 4]], return_blocks=True)
    for row in range(2):
        told = [t for b in output.blocks if b.row == row for t in (*b.drafted, b.next_token)]
        assert told == output.new_tokens()[row]


def test_the_decoders_number_of_draft_tokens_cuts_the_depth(target, draft):
    output = decode(target, TreeDrafter(draft, (2, 2, 2)), [[5, 6]], num_draft_tokens=1)
    assert 0 < output.stats.num_drafted <= 2 * output.stats.num_target_calls


def test_a_model_that_takes_positions_from_the_order_of_storage_is_refused(target, draft):
    assert tells_slots_from_positions(target)
    deaf = copy.deepcopy(target)
    inner = deaf.model.forward
    deaf.model.forward = lambda **kwargs: inner(**{**kwargs, "position_ids": None})
    assert not tells_slots_from_positions(deaf)
    with pytest.raises(TypeError, match="the target cannot be used with trees"):
        TreeDrafter(draft).check(deaf)


def test_what_does_not_go_with_trees_is_named(target, draft, make_model):
    for branching in ((), (2, 0)):
        with pytest.raises(ValueError, match="branching"):
            TreeDrafter(draft, branching)
    with pytest.raises(ValueError, match="sampling"):
        TreeDrafter(draft, sampling="independent")
    with pytest.raises(ValueError, match="plans chains"):
        SpeculativeDecoder(target, TreeDrafter(draft), num_draft_tokens="auto")
    with pytest.raises(ValueError, match="verifier='block' is a rule for chains"):
        SpeculativeDecoder(target, TreeDrafter(draft), verifier="block")
    model = make_model("mistral")
    with pytest.raises(ValueError, match="see 4 tokens"):
        TreeDrafter(model, (1, 1, 1, 1)).check(model)
    decoder = SpeculativeDecoder(target, TreeDrafter(draft), cache="dynamic")
    with pytest.raises(ValueError, match="needs slots"):
        decoder.generate(torch.tensor([[5, 6]]), params=SamplingParams(max_new_tokens=2))
