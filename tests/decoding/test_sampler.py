from dataclasses import replace

import pytest
import torch
from scipy import stats

from selftrain.decoding.params import SamplingParams
from selftrain.decoding.sampler import HFSampler

SHORT = SamplingParams(max_new_tokens=4)
PROMPTS = [[5, 6, 7], [9], [3, 4, 5, 6, 7, 8, 9, 10, 11], [20, 21]]


def ids(completions):
    return [[c.token_ids for c in row] for row in completions]


@pytest.mark.parametrize("name", ["gpt2", "qwen3", "mistral", "bloom"])
def test_greedy_equals_transformers_generate(make_model, name, char_tokenizer):
    model = make_model(name)
    params = SamplingParams(max_new_tokens=20, temperature=0)
    got = HFSampler(model, char_tokenizer, batch_size=3).sample(PROMPTS, params=params)
    for prompt, (completion,) in zip(PROMPTS, got, strict=True):
        want = model.generate(
            torch.tensor([prompt]),
            attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
            max_new_tokens=20,
            do_sample=False,
            pad_token_id=0,
        )
        assert list(completion.token_ids) == want[0, len(prompt) :].tolist()


@pytest.fixture
def sampler(make_llama, char_tokenizer):
    return HFSampler(make_llama(sharpness=2.5).double(), char_tokenizer, batch_size=4)


def test_completions_do_not_depend_on_the_batch(sampler, char_tokenizer):
    params = SamplingParams(max_new_tokens=24, seed=3)
    small = sampler.sample(PROMPTS, num_samples=3, params=params)
    large = HFSampler(sampler.model, char_tokenizer, batch_size=64)
    assert ids(small) == ids(large.sample(PROMPTS, num_samples=3, params=params))


def test_a_completion_depends_on_its_own_seed_alone(sampler):
    params = SamplingParams(max_new_tokens=16)
    both = sampler.sample(PROMPTS[:2], num_samples=2, params=params, seeds=[[7, 8], [9, 7]])
    alone = sampler.sample(PROMPTS[1:2], num_samples=1, params=params, seeds=[[9]])
    assert ids(alone)[0][0] == ids(both)[1][0]


def test_without_a_seed_torch_manual_seed_repeats_the_draw(sampler):
    draws = []
    for _ in range(2):
        torch.manual_seed(0)
        draws.append(ids(sampler.sample(PROMPTS, params=SamplingParams(max_new_tokens=8))))
    assert draws[0] == draws[1]


@pytest.mark.parametrize(
    "law", [{}, {"temperature": 0.6}, {"top_k": 5}, {"top_p": 0.7}, {"min_p": 0.1}]
)
def test_sampled_pairs_follow_the_exact_law(make_llama, char_tokenizer, law):
    """Chi-square of two consecutive tokens against the product of exact conditionals.

    5 laws at p > 1e-3 each: a false alarm in 1 of 200 seeds; the seed is fixed.
    """
    model = make_llama(sharpness=2.0, vocab_size=12).double()
    params = SamplingParams(max_new_tokens=2, seed=11, **law)
    sampler = HFSampler(model, char_tokenizer, batch_size=4096, eos_token_ids=())
    n = 12_000
    (rows,) = sampler.sample([[5, 6]], num_samples=n, params=params)
    pairs = torch.tensor([c.token_ids for c in rows])
    counts = (pairs[:, 0] * 12 + pairs[:, 1]).bincount(minlength=144).double()
    expected = n * exact_pair_law(model, [5, 6], law).flatten()
    assert (counts[expected == 0] == 0).all()
    common = expected >= 5
    rest = torch.stack([counts[~common].sum(), expected[~common].sum()])
    observed = torch.cat([counts[common], rest[:1]])
    wanted = torch.cat([expected[common], rest[1:]])
    keep = wanted > 0
    assert stats.chisquare(observed[keep], wanted[keep]).pvalue > 1e-3


def exact_pair_law(model, prompt, law):
    """The warped law of two tokens by transformers' own warpers, not ours."""
    from transformers import GenerationConfig

    config = GenerationConfig(do_sample=True, **{"top_k": 0, **law})
    warper = model._get_logits_processor(config)

    def conditional(rows):
        with torch.no_grad():
            logits = model(input_ids=rows).logits[:, -1]
        return warper(rows, logits).softmax(-1)

    first = conditional(torch.tensor([prompt]))[0]
    vocab = len(first)
    rows = torch.tensor([[*prompt, v] for v in range(vocab)])
    return first.unsqueeze(1) * conditional(rows)


def test_log_probs_are_those_of_the_warped_law(sampler):
    params = SamplingParams(max_new_tokens=6, temperature=0.7, seed=1)
    ((completion,),) = sampler.sample([PROMPTS[0]], params=params)
    whole = torch.tensor([[*PROMPTS[0], *completion.token_ids]])
    with torch.no_grad():
        logits = sampler.model(input_ids=whole).logits[0] / 0.7
    n = len(PROMPTS[0])
    want = logits.log_softmax(-1)[torch.arange(n - 1, whole.shape[1] - 1), whole[0, n:]]
    torch.testing.assert_close(
        torch.tensor(completion.log_probs), want.float(), atol=1e-5, rtol=1e-5
    )


def test_each_prompt_is_prefilled_once_however_many_samples(sampler):
    widths = []
    hook = sampler.model.register_forward_pre_hook(
        lambda _, args, kwargs: widths.append(tuple(kwargs["input_ids"].shape)), with_kwargs=True
    )
    params = SamplingParams(max_new_tokens=4, seed=0)
    sampler.sample([PROMPTS[2]], num_samples=10, params=params)  # batch_size is 4
    hook.remove()
    assert [w for w in widths if w[1] > 1] == [(1, len(PROMPTS[2]) - 1)]


def test_any_of_several_eos_ids_ends_a_completion(sampler, char_tokenizer):
    params = SamplingParams(max_new_tokens=40, seed=0)
    free = HFSampler(sampler.model, char_tokenizer, eos_token_ids=())
    ((long,),) = free.sample([PROMPTS[0]], params=params)
    ends = (long.token_ids[9], long.token_ids[14])
    first = min(long.token_ids.index(e) for e in ends)
    ending = HFSampler(sampler.model, char_tokenizer, eos_token_ids=ends)
    ((short,),) = ending.sample([PROMPTS[0]], params=params)
    assert short.token_ids == long.token_ids[: first + 1]
    assert (short.finish_reason, long.finish_reason) == ("stop", "length")


def test_a_stop_string_across_tokens_cuts_text_and_tokens(sampler, char_tokenizer):
    free = HFSampler(sampler.model, char_tokenizer, eos_token_ids=())
    ((long,),) = free.sample(["abc"], params=SamplingParams(max_new_tokens=30, seed=0))
    stop = long.text[12:15]
    at = long.text.index(stop)
    params = SamplingParams(max_new_tokens=30, seed=0, stop=(stop,))
    ((short,),) = free.sample(["abc"], params=params)
    assert short.text == long.text[:at]
    assert short.token_ids == long.token_ids[:at]  # one character a token
    assert short.finish_reason == "stop"


def test_messages_go_through_the_chat_template(sampler, char_tokenizer):
    template = "{% for m in messages %}{{ m['content'] }};{% endfor %}"
    char_tokenizer.chat_template = template
    params = SamplingParams(max_new_tokens=5, temperature=0)
    messages = [{"role": "user", "content": "hi"}]
    try:
        got = sampler.sample([messages], params=params)
    finally:
        char_tokenizer.chat_template = None
    assert ids(got) == ids(sampler.sample(["hi;"], params=params))


def test_sampling_leaves_training_mode_and_gradients_alone(sampler):
    sampler.model.train()
    sampler.sample([PROMPTS[0]], params=SamplingParams(max_new_tokens=2))
    assert sampler.model.training
    assert all(p.grad is None for p in sampler.model.parameters())
    sampler.model.eval()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"prompts": []}, "prompts is empty"),
        ({"prompts": [[]]}, "is empty"),
        ({"prompts": [[5]], "num_samples": 0}, "num_samples"),
        ({"prompts": [[5] * 100], "params": SamplingParams(max_new_tokens=60)}, "128"),
        ({"prompts": [[5]], "seeds": [[1, 2]], "params": SHORT}, "seeds"),
        ({"prompts": [[5]], "seeds": [[1]], "params": replace(SHORT, seed=1)}, "both"),
    ],
)
def test_bad_input_is_named(sampler, arguments, message):
    with pytest.raises(ValueError, match=message):
        sampler.sample(**arguments)


def test_nan_logits_are_an_error_not_a_token(make_llama, char_tokenizer):
    model = make_llama()
    sampler = HFSampler(model, char_tokenizer)
    model.lm_head.weight.data[0, 0] = float("nan")
    with pytest.raises(ValueError, match="NaN"):
        sampler.sample([[5]], params=SamplingParams(max_new_tokens=3))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_models_sample(make_llama, char_tokenizer, dtype):
    sampler = HFSampler(make_llama().to(dtype), char_tokenizer)
    ((completion,),) = sampler.sample([[5]], params=SamplingParams(max_new_tokens=5, seed=0))
    assert len(completion.token_ids) <= 5
