"""A sampler over HTTP, against a loopback server that samples from a real tiny model."""

import json
import re
import time

import pytest
from model_server import ModelServer

from selftrain.decoding import EndpointSampler, HFSampler, SamplingParams
from selftrain.decoding.requests import strict_request

PARAMS = SamplingParams(max_new_tokens=6)
PROMPTS = [[3, 4, 5], [6, 7]]


class Sampling(ModelServer):
    """Completes prompts as vLLM does; ``gives`` names what is in its answers besides the text."""

    def __init__(self, model, tokenizer, *, gives=("token_ids", "logprobs"), **settings):
        super().__init__(model, **settings)
        self.tokenizer, self.gives = tokenizer, gives
        self.names, self.adapters = {self.name}, []

    def answer(self, body):
        if "lora_name" in body:
            self.adapters.append(body)
            known = body["lora_name"] in self.names
            (self.names.discard if known else self.names.add)(body["lora_name"])
            return 200, "Success: LoRA adapter handled."
        if body["model"] not in self.names:
            return 404, {"error": {"message": f"The model `{body['model']}` does not exist."}}
        params = SamplingParams(
            max_new_tokens=body["max_tokens"],
            temperature=body["temperature"],
            top_k=body["top_k"] if body["top_k"] > 0 else None,
            top_p=body["top_p"],
            seed=body["seed"],
        )
        with self._model_lock:
            sampler = HFSampler(self.model, self.tokenizer)
            prompt = body["prompt"] if "prompt" in body else body["messages"][0]["content"]
            ((found,),) = sampler.sample([prompt], num_samples=1, params=params)
        choice = {"text": found.text, "finish_reason": found.finish_reason}
        if "messages" in body:
            entries = [{"logprob": x} for x in found.log_probs]
            choice = {"message": {"content": found.text}, "logprobs": {"content": entries}}
            return 200, {"choices": [choice | {"finish_reason": found.finish_reason}]}
        if "token_ids" in self.gives and body["return_token_ids"]:
            choice["token_ids"] = found.token_ids
        if "logprobs" in self.gives:
            choice["logprobs"] = {"token_logprobs": found.log_probs}
        answer = {"choices": [choice]}
        return 200, self.edit(answer) if self.edit else answer


@pytest.fixture
def serve(make_llama, char_tokenizer):
    opened = []

    def start(*, ask_for="tiny", options=None, **settings):
        server = Sampling(make_llama(sharpness=3.0), char_tokenizer, **settings)
        opened.append(server.__enter__())
        settings = {"backoff": 0.001, "tokenizer": char_tokenizer, **(options or {})}
        sampler = EndpointSampler(server.url, ask_for, **settings)
        opened.append(sampler)
        return server, sampler

    yield start
    for thing in reversed(opened):
        thing.__exit__()


def test_completions_are_those_of_the_model_with_the_same_seeds(serve, make_llama, char_tokenizer):
    _, sampler = serve()
    found = sampler.sample(PROMPTS, num_samples=3, params=PARAMS, seeds=[[1, 2, 3], [4, 5, 6]])
    local = HFSampler(make_llama(sharpness=3.0), char_tokenizer)
    for prompt, seeds, completions in zip(PROMPTS, [[1, 2, 3], [4, 5, 6]], found, strict=True):
        for seed, completion in zip(seeds, completions, strict=True):
            params = SamplingParams(max_new_tokens=6, seed=seed)
            ((expected,),) = local.sample([prompt], num_samples=1, params=params)
            assert completion == expected


def test_every_completion_is_a_request_of_its_own_with_its_own_seed(serve):
    server, sampler = serve()
    sampler.sample(PROMPTS, num_samples=4, params=PARAMS)
    assert len(server.requests) == 8
    assert {body["n"] for body in server.requests} == {1}
    assert len({body["seed"] for body in server.requests}) == 8


def test_a_seed_in_the_params_repeats_the_result(serve):
    _, sampler = serve()
    params = SamplingParams(max_new_tokens=6, seed=3)
    first, second = (sampler.sample(PROMPTS, num_samples=2, params=params) for _ in range(2))
    assert first == second


def test_what_the_server_does_not_give_is_none(serve):
    _, sampler = serve(gives=())
    ((completion,),) = sampler.sample([PROMPTS[0]], params=PARAMS)
    assert completion.token_ids is None
    assert completion.log_probs is None
    assert completion.finish_reason in ("stop", "length")


def test_log_probs_of_another_law_than_the_warped_one_are_not_passed_on(serve):
    _, sampler = serve()
    params = SamplingParams(max_new_tokens=6, temperature=0.5)
    ((completion,),) = sampler.sample([PROMPTS[0]], params=params)
    assert completion.log_probs is None
    assert completion.token_ids is not None


def test_one_request_that_fails_for_good_leaves_the_others(serve):
    _, sampler = serve(faults=[0.0, 400], options={"max_concurrency": 1})
    found = [c for row in sampler.sample(PROMPTS, num_samples=2, params=PARAMS) for c in row]
    reasons = [completion.finish_reason for completion in found]
    assert reasons.count("error") == 1
    assert all(c.token_ids for c in found if c.finish_reason != "error")


def test_passing_faults_are_retried(serve):
    server, sampler = serve(faults=[503, 429])
    sampler.sample([PROMPTS[0]], params=PARAMS)
    assert len(server.requests) == 3


def test_requests_run_side_by_side_up_to_the_limit(serve):
    server, sampler = serve(faults=[0.02] * 9, options={"max_concurrency": 3})
    sampler.sample([PROMPTS[0]], num_samples=9, params=PARAMS)
    assert server.most_at_once == 3


def test_messages_are_sent_as_the_ids_of_the_chat_template(serve, char_tokenizer):
    server, sampler = serve()
    char_tokenizer.chat_template = "{% for m in messages %}{{ m.content }}{% endfor %}"
    try:
        sampler.sample([[{"role": "user", "content": "ab"}]], params=PARAMS)
    finally:
        char_tokenizer.chat_template = None
    assert server.requests[0]["prompt"] == char_tokenizer("ab").input_ids


def test_a_wrong_name_is_an_error_at_once(serve):
    server, sampler = serve(ask_for="other")
    with pytest.raises(ValueError, match=r"`other` does not exist"):
        sampler.sample(PROMPTS, num_samples=4, params=PARAMS)
    assert len(server.requests) == 1


@pytest.mark.parametrize("answer", [{}, {"choices": []}, {"choices": [{"text": None}]}])
def test_an_answer_without_a_completion_is_an_error(serve, answer):
    _, sampler = serve(faults=[json.dumps(answer)])
    with pytest.raises(ValueError, match="returned no completion"):
        sampler.sample(PROMPTS, params=PARAMS)


def test_new_adapters_replace_old_ones(serve, tmp_path):
    server, sampler = serve()
    (tmp_path / "adapter_config.json").write_text("{}")
    for number in (1, 2):
        sampler.load_weights(tmp_path)
        sampler.sample([PROMPTS[0]], params=PARAMS)
        assert re.fullmatch(f"tiny-[0-9a-f]{{8}}-{number}", server.requests[-1]["model"])
        assert server.names == {"tiny", server.requests[-1]["model"]}
    assert server.adapters[0]["lora_path"] == str(tmp_path)


def test_a_server_that_outlives_a_sampler_takes_the_adapters_of_the_next(serve, tmp_path):
    server, sampler = serve()
    (tmp_path / "adapter_config.json").write_text("{}")
    sampler.load_weights(tmp_path)
    with EndpointSampler(server.url, "tiny") as another:
        another.load_weights(tmp_path)
        assert another.model != sampler.model
        assert server.names == {"tiny", sampler.model, another.model}


def test_a_folder_without_an_adapter_is_refused(serve, tmp_path):
    _, sampler = serve()
    with pytest.raises(ValueError, match=r"no adapter_config\.json"):
        sampler.load_weights(tmp_path)


def test_empty_prompts_are_refused_before_anything_is_sent(serve):
    server, sampler = serve()
    for prompts in ([], [""], [[]]):
        with pytest.raises(ValueError, match="empty"):
            sampler.sample(prompts, params=PARAMS)
    assert server.requests == []


def test_without_a_tokenizer_messages_go_to_the_chat_route(serve, make_llama, char_tokenizer):
    server, sampler = serve(options={"tokenizer": None})
    messages = [{"role": "user", "content": "ab"}]
    ((found,),) = sampler.sample([messages], params=PARAMS, seeds=[[7]])
    assert server.requests[0]["messages"] == messages
    local = HFSampler(make_llama(sharpness=3.0), char_tokenizer)
    ((wanted,),) = local.sample(["ab"], params=SamplingParams(max_new_tokens=6, seed=7))
    assert (found.text, found.token_ids) == (wanted.text, None)
    assert found.log_probs == wanted.log_probs


def test_requests_keep_to_the_rate(serve):
    server, sampler = serve(faults=[503], options={"max_rate": 50.0, "max_concurrency": 8})
    start = time.monotonic()
    sampler.sample(["ab"], num_samples=10, params=PARAMS)
    assert len(server.requests) == 11
    assert time.monotonic() - start >= 10 / 50


def test_a_rate_of_nothing_is_an_error():
    with pytest.raises(ValueError, match="max_rate"):
        EndpointSampler("http://localhost:1/v1", "tiny", max_rate=0.0)


def test_ids_that_no_text_stands_for_are_not_sent_as_text(bpe_tokenizer):
    ids = bpe_tokenizer("the cat").input_ids
    body = strict_request("m", ids, PARAMS, 1, bpe_tokenizer).body
    assert body["prompt"] == "the cat"
    apart = [i for letter in "the cat" for i in bpe_tokenizer(letter).input_ids]
    with pytest.raises(ValueError, match="'the cat' of the prompt is encoded as others"):
        strict_request("m", apart, PARAMS, 1, bpe_tokenizer)


@pytest.mark.parametrize(
    ("params", "law"),
    [
        (SamplingParams(temperature=0), {"do_sample": False}),
        (
            SamplingParams(),
            {"do_sample": True, "temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": None},
        ),
        (
            SamplingParams(temperature=0.5, top_k=3, top_p=0.9, min_p=0.1),
            {"do_sample": True, "temperature": 0.5, "top_k": 3, "top_p": 0.9, "min_p": 0.1},
        ),
    ],
)
def test_a_strict_server_is_told_the_law_as_a_generation_config(params, law):
    body = strict_request("m", "ab", params, 2**40 + 3, None).body
    assert json.loads(body["generation_config"]) == law
    assert set(body) == {"model", "max_tokens", "seed", "generation_config", "prompt"}
    assert body["seed"] == 3
