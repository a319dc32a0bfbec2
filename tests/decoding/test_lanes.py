"""Rows that share prompts and lanes: the completions of each row alone, by less work and memory."""

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from selftrain.decoding import HFSampler, SamplingParams
from selftrain.decoding.cache import PaddedLanes, SharedLanes, SlotLanes, shared
from selftrain.decoding.cache.stretches import Branch, Now, Step, StretchLayer
from selftrain.ops import Stream, inverse_cdf, uniform, warp_logits

COMMON = [7, 8, 9, 10, 11, 12]
PROMPTS = [[*COMMON, 20, 21, 22, 23], [*COMMON, 5], COMMON, [*COMMON, 13, 14, 15], [*COMMON, 5, 6]]
EVERYTHING, NOTHING = 0, 2**60  # bytes from which on a branch is shared


def complete(model, prompt, seed, params, eos):
    """Sample one completion without any cache: the whole sequence is read for every token."""
    tokens = list(prompt)
    while len(tokens) < len(prompt) + params.max_new_tokens:
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([tokens]), use_cache=False).logits[0, -1]
        law = warp_logits(
            logits,
            temperature=params.temperature,
            top_k=params.top_k,
            top_p=params.top_p,
            min_p=params.min_p,
        ).softmax(-1)
        noise = uniform(torch.tensor(seed), stream=Stream.EMIT, position=len(tokens))
        tokens.append(int(inverse_cdf(law, noise)))
        if tokens[-1] in eos:
            break
    return tuple(tokens[len(prompt) :])


@pytest.fixture
def sharing(monkeypatch):
    """Set from how many bytes on a branch is shared."""
    return lambda num_bytes: monkeypatch.setattr(shared, "WORTH_SHARING", num_bytes)


def ids(found):
    return [[c.token_ids for c in row] for row in found]


@pytest.mark.parametrize(
    ("name", "lanes", "worth"),
    [
        ("gpt2", SharedLanes, EVERYTHING),
        ("gpt2", SharedLanes, NOTHING),
        ("qwen3", SharedLanes, EVERYTHING),
        ("qwen3", SharedLanes, NOTHING),
        ("gptneox", SharedLanes, EVERYTHING),
        ("opt", SharedLanes, EVERYTHING),
        ("mistral", SlotLanes, None),
        ("gemma2", SlotLanes, None),
        ("falcon", SlotLanes, None),
        ("mpt", SlotLanes, None),
        ("bloom", PaddedLanes, None),
        ("llama4", PaddedLanes, None),
    ],
)
def test_rows_are_those_that_each_would_be_alone_and_without_a_cache(
    make_model, sharing, name, lanes, worth
):
    sharing(worth)
    model = make_model(name, sharpness=3.0)
    model = model if name == "bloom" else model.double()  # its masks overflow in float64
    eos = set(range(40, 48))  # an eighth of the vocabulary: rows end at different times
    sampler = HFSampler(model, None, batch_size=4, eos_token_ids=sorted(eos))
    assert sampler._lanes_type is lanes
    params = SamplingParams(max_new_tokens=11, top_k=40)
    seeds = [[10 * p + s for s in range(3)] for p in range(len(PROMPTS))]
    found = sampler.sample(PROMPTS, num_samples=3, params=params, seeds=seeds)
    wanted = [
        [complete(model, prompt, seed, params, eos) for seed in of_prompt]
        for prompt, of_prompt in zip(PROMPTS, seeds, strict=True)
    ]
    assert ids(found) == wanted
    assert len({len(row) for of_prompt in wanted for row in of_prompt}) > 2


@pytest.mark.parametrize("worth", [EVERYTHING, NOTHING])
@pytest.mark.parametrize("common", [COMMON, []])
def test_the_size_of_the_batch_makes_no_difference(make_llama, sharing, worth, common):
    sharing(worth)
    model = make_llama(sharpness=2.5).double()
    prompts = [[*common, *p[len(COMMON) :], 30 + i] for i, p in enumerate(PROMPTS)]
    params = SamplingParams(max_new_tokens=40, seed=5)
    found = [
        HFSampler(model, None, batch_size=size, eos_token_ids=range(30, 34)).sample(
            prompts, num_samples=7, params=params
        )
        for size in (1, 7, 64)
    ]
    assert ids(found[0]) == ids(found[1]) == ids(found[2])
    lengths = {len(c.token_ids) for row in found[0] for c in row}
    assert len(lengths) > 8  # so that lanes were refilled at many different lengths
    for one, other in zip(found[0], found[2], strict=True):
        for a, b in zip(one, other, strict=True):
            assert a.log_probs == pytest.approx(b.log_probs, abs=1e-6)


def test_stop_strings_end_rows_whose_lanes_are_taken_over(make_llama, char_tokenizer):
    model = make_llama(sharpness=2.5).double()
    params = SamplingParams(max_new_tokens=40, seed=1, stop=("a", "7"))
    alone, many = (
        HFSampler(model, char_tokenizer, batch_size=size).sample(
            ["ab", "abc"], num_samples=9, params=params
        )
        for size in (1, 4)
    )
    assert alone == many
    assert sum(c.finish_reason == "stop" for row in alone for c in row) > 9


def test_rows_may_fill_the_positions_of_the_model_to_the_last(make_model):
    model = make_model("gpt2", n_positions=24)  # a table: the next position is an error
    sampler = HFSampler(model, None, batch_size=3, eos_token_ids=range(5))
    params = SamplingParams(max_new_tokens=19, seed=0)
    found = sampler.sample([[5, 6, 7, 8, 9], [5]], num_samples=10, params=params)
    assert min(len(c.token_ids) for row in found for c in row) < 8
    assert max(len(c.token_ids) for row in found for c in row) == 19


def shapes_fed_to(model, call):
    """Return what ``call`` feeds to ``model``: the shapes of its input ids."""
    shapes = []
    hook = model.register_forward_pre_hook(
        lambda _, args, kwargs: shapes.append(tuple(kwargs["input_ids"].shape)), with_kwargs=True
    )
    call()
    hook.remove()
    return shapes


@pytest.mark.parametrize("name", ["qwen3", "mistral"])
def test_what_prompts_have_in_common_is_read_once_and_the_rest_once_each(make_model, name):
    model = make_model(name)
    sampler = HFSampler(model, None, batch_size=8)
    params = SamplingParams(max_new_tokens=2, seed=0)
    fed = shapes_fed_to(model, lambda: sampler.sample(PROMPTS, num_samples=4, params=params))
    # Of [*COMMON] the last token is not read but fed, so that five are common to all.
    rests = sorted(len(p) - 1 - 5 for p in PROMPTS)
    groups = [rests[:2], rests[2:4], rests[4:]]  # a batch holds the rows of two prompts
    wanted = [(1, 5)] + [(len(g), max(g)) for g in groups]
    assert [shape for shape in fed if shape[1] > 1] == [w for w in wanted if w[1] > 1]


@pytest.mark.parametrize("name", ["qwen3", "mistral"])
def test_lanes_stay_full_while_rows_wait(make_model, name):
    model = make_model(name, sharpness=3.0)
    sampler = HFSampler(model, None, batch_size=8, eos_token_ids=range(40, 56))
    params = SamplingParams(max_new_tokens=64, seed=0)
    found = []
    fed = shapes_fed_to(
        model, lambda: found.extend(sampler.sample([[5, 6]], num_samples=60, params=params))
    )
    widths = [rows for rows, new in fed[1:]]
    first_drop = next(i for i, width in enumerate(widths) if width < 8)
    assert widths[:first_drop] == [8] * first_drop
    assert widths == sorted(widths, reverse=True)
    # A row is fed at most seven tokens beyond its end.
    drawn = sum(len(c.token_ids) for c in found[0])
    assert drawn <= sum(widths) <= drawn + 7 * 60


def lanes_of(monkeypatch):
    """Return a list into which every SharedLanes that is made goes."""
    made = []
    init = SharedLanes.__init__

    def noting(self, *args, **kwargs):
        init(self, *args, **kwargs)
        made.append(self)

    monkeypatch.setattr(SharedLanes, "__init__", noting)
    return made


@pytest.mark.parametrize("prompts", [1, 2])
def test_a_long_prompt_is_stored_once_for_all_its_rows(make_llama, monkeypatch, sharing, prompts):
    sharing(2**12)
    model = make_llama(max_position_embeddings=2048)
    sampler = HFSampler(model, None, batch_size=32 * prompts, eos_token_ids=())
    made = lanes_of(monkeypatch)
    sizes = []
    step = SharedLanes.step
    monkeypatch.setattr(
        SharedLanes, "step", lambda lanes, t: (step(lanes, t), sizes.append(lanes.num_bytes))[0]
    )
    texts = [[3 + p] + [5] * 1023 for p in range(prompts)]  # two have nothing in common
    sampler.sample(texts, num_samples=32, params=SamplingParams(max_new_tokens=16, seed=0))
    assert len(made) == 1
    token = 2 * 2 * 1 * 16 * 4  # keys and values of 2 layers, 1 head of 16 features, float32
    assert max(sizes) <= token * prompts * (1024 + 32 * 32)  # of 32 own slots 16 are used


def test_nothing_is_left_behind_in_transformers(make_llama):
    model = make_llama()
    sampler = HFSampler(model, None)
    names, attention = set(ALL_ATTENTION_FUNCTIONS), model.config._attn_implementation
    sampler.sample([[5, 6]], params=SamplingParams(max_new_tokens=2))
    model.lm_head.weight.data[0, 0] = float("nan")
    with pytest.raises(ValueError, match="NaN"):
        sampler.sample([[5, 6]], params=SamplingParams(max_new_tokens=2))
    assert set(ALL_ATTENTION_FUNCTIONS) == names
    assert model.config._attn_implementation == attention == "sdpa"


def test_the_attention_is_that_of_the_model_again_when_its_forward_fails(make_llama, monkeypatch):
    model = make_llama()
    sampler = HFSampler(model, None)

    def fail(*args, **kwargs):
        assert model.config._attn_implementation.startswith("stretches")
        raise RuntimeError("out of memory")

    monkeypatch.setattr(model.model.norm, "forward", fail)
    with pytest.raises(RuntimeError, match="out of memory"):
        sampler.sample([[5, 6]], params=SamplingParams(max_new_tokens=2))
    assert model.config._attn_implementation == "sdpa"


def test_a_compiled_model_keeps_its_own_attention(make_llama):
    model = make_llama()
    model._compiled_call_impl = model._call_impl  # which is what compile() sets, when it is done
    assert HFSampler(model, None)._lanes_type is SlotLanes


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("worth", [EVERYTHING, NOTHING])
def test_logits_are_those_of_a_plain_forward(make_llama, dtype, worth):
    model = make_llama(sharpness=2.0, num_attention_heads=4, num_key_value_heads=2).to(dtype)
    rows = torch.randint(3, 40, (3, 12), generator=torch.Generator().manual_seed(0))
    rows[:, :4] = rows[0, :4]
    with torch.no_grad():
        wanted = model(input_ids=rows, use_cache=False).logits
        lanes = SharedLanes(model, trunk=rows[0, :4].tolist(), capacity=16, worth_sharing=worth)
        lanes.open(
            lanes.read([r[:n].tolist() for r, n in zip(rows, (4, 6, 9), strict=True)], num_rows=2)
        )
        for step in range(3):
            places = torch.tensor([4, 6, 9]) + step
            got = lanes.step(rows.gather(1, places.unsqueeze(1)).squeeze(1))
            tolerance = (
                {"atol": 1e-5, "rtol": 1e-5}
                if dtype == torch.float32
                else {"atol": 0.05, "rtol": 0.05}
            )
            torch.testing.assert_close(got, wanted[torch.arange(3), places], **tolerance)


@pytest.mark.parametrize("trunk", [0, 5])
@pytest.mark.parametrize("heads", [(4, 4), (4, 2), (4, 1)])
def test_attention_to_stretches_is_attention_to_the_whole(trunk, heads):
    """Five rows of three branches, one of them copied, against one softmax over each row."""
    rng = torch.Generator().manual_seed(0)
    query_heads, kv_heads = heads
    features, lengths = 8, [4, 4, 0, 7, 4]
    own = [3, 1, 2, 5, 3]

    def stretch(length):
        return tuple(torch.randn(kv_heads, length, features, generator=rng) for _ in range(2))

    now = Now()
    layer = StretchLayer(now)
    layer.trunk = stretch(trunk) if trunk else ()
    first, second = (Branch(n, (stretch(n),), True) for n in (4, 7))
    branches = [first, first, None, second, first]
    stored = [stretch(n) for n in own]
    for i, part in enumerate(zip(*stored, strict=True)):
        room = torch.full((kv_heads, 5, 6, features), 9.0)
        for row, x in enumerate(part):
            room[:, row, : x.shape[1]] = x
        layer.own = (*layer.own, room) if i else (room,)
    slots = torch.tensor(own) - 1
    hidden = torch.zeros(5, 1, 5).masked_fill(torch.arange(5) > slots[:, None, None], -torch.inf)
    groups = [(first, torch.tensor([0, 1, 4])), (second, torch.tensor([3]))]
    now.step = Step(slots, 5, hidden, groups, 6)
    query = torch.randn(5, query_heads, 1, features, generator=rng)
    got, _ = now.attend(None, query, None, None, None)
    for row in range(5):
        chain = [layer.trunk, branches[row] and branches[row].layers[0], stored[row]]
        keys, values = (torch.cat([s[i] for s in chain if s], dim=1) for i in range(2))
        assert keys.shape[1] == trunk + lengths[row] + own[row]
        wanted = scaled_dot_product_attention(
            query[row], *(x.repeat_interleave(query_heads // kv_heads, 0) for x in (keys, values))
        )
        torch.testing.assert_close(got[row, 0], wanted[:, 0], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("more", ["softcap", "s_aux", "position_bias", "sliding_window"])
def test_attention_that_is_more_than_plain_is_refused(more):
    query = torch.zeros(1, 1, 1, 4)
    with pytest.raises(NotImplementedError, match=more):
        Now().attend(None, query, query, query, None, **{more: 1.0})


def test_two_threads_in_one_model_are_an_error_not_wrong_tokens(make_llama):
    config = make_llama().config
    with (
        Now().attention_of(config),
        pytest.raises(RuntimeError, match="another thread"),
        Now().attention_of(config),
    ):
        pass
    assert config._attn_implementation == "sdpa"


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
def test_adapters_are_sampled_from_with_shared_prompts(make_llama, sharing):
    from peft import LoraConfig, get_peft_model

    sharing(EVERYTHING)
    model = make_llama(sharpness=2.5).double()
    adapted = get_peft_model(model, LoraConfig(target_modules=["q_proj"], init_lora_weights=False))
    sampler = HFSampler(adapted, None, batch_size=4, eos_token_ids=range(30, 34))
    assert sampler._lanes_type is SharedLanes
    params = SamplingParams(max_new_tokens=9)
    found = sampler.sample(PROMPTS, num_samples=1, params=params, seeds=[[p] for p in range(5)])
    wanted = [complete(adapted, p, i, params, range(30, 34)) for i, p in enumerate(PROMPTS)]
    assert [row[0].token_ids for row in found] == wanted
