"""EndpointSampler against a real ``transformers serve`` on loopback, with a tiny model."""

import os
import socket
import subprocess
import sys
import threading
import time
import urllib.request

import pytest
import torch
from scipy import stats

from selftrain.decoding import EndpointSampler, HFSampler, SamplingParams

pytest.importorskip("fastapi")
pytest.importorskip("uvicorn")
pytest.importorskip("openai")

TEMPLATE = "{% for m in messages %}{{ m['content'] }}.{% endfor %}"
GREEDY = SamplingParams(max_new_tokens=8, temperature=0)


class Server:
    """A process that serves the model in a folder."""

    def __init__(self, folder):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.name, self.address = str(folder), f"http://127.0.0.1:{port}"
        self.url = self.address + "/v1"
        code = "import sys; from transformers.cli.transformers import main; sys.exit(main())"
        options = ["--host", "127.0.0.1", "--port", str(port), "--device", "cpu"]
        self._log = (folder / "server.log").open("w+")
        self.process = subprocess.Popen(
            [sys.executable, "-c", code, "serve", self.name, *options],
            env={**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
            stdout=self._log,
            stderr=self._log,
        )

    def wait(self, *, seconds=120):
        end = time.monotonic() + seconds
        while time.monotonic() < end and self.process.poll() is None:
            try:
                return urllib.request.urlopen(self.address + "/health", timeout=1).close()
            except OSError:
                time.sleep(0.1)
        self._log.seek(0)
        raise RuntimeError(f"transformers serve did not start:\n{self._log.read()[-2000:]}")

    def stop(self):
        self.process.kill()
        self.process.wait()
        self._log.close()


@pytest.fixture(scope="module")
def tokenizer(char_tokenizer):
    before = char_tokenizer.chat_template
    char_tokenizer.chat_template = TEMPLATE
    yield char_tokenizer
    char_tokenizer.chat_template = before


@pytest.fixture(scope="module")
def local(make_llama):
    return make_llama(sharpness=3.0)


@pytest.fixture(scope="module")
def start(local, tokenizer, tmp_path_factory):
    """Start servers; all are stopped in the end."""
    servers = []

    def begin():
        folder = tmp_path_factory.mktemp("served")
        local.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        servers.append(Server(folder))
        servers[-1].wait()
        return servers[-1]

    yield begin
    for server in servers:
        server.stop()


@pytest.fixture(scope="module")
def server(start):
    return start()


@pytest.fixture
def connect(server, tokenizer):
    """Open samplers that note what they post."""
    opened = []

    def connect(**options):
        sampler = EndpointSampler(server.url, server.name, **{"tokenizer": tokenizer, **options})
        opened.append(sampler)
        sampler.posted = []
        post = sampler._client.post
        sampler._client.post = lambda path, body: (
            sampler.posted.append((path, body)),
            post(path, body),
        )[1]
        return sampler

    yield connect
    for sampler in opened:
        sampler.close()


def test_a_sample_is_a_request_and_the_server_gives_no_ids(connect):
    sampler = connect(max_concurrency=4)
    params = SamplingParams(max_new_tokens=5, top_k=10)
    found = sampler.sample(["ab", "c"], num_samples=5, params=params)
    assert [len(row) for row in found] == [5, 5]
    assert len(sampler.posted) == 10 + 1  # the first is refused, for its fields
    assert len({body["seed"] for _, body in sampler.posted}) == 10
    for completion in (c for row in found for c in row):
        assert completion.token_ids is None
        assert completion.log_probs is None
        assert completion.finish_reason in ("stop", "length")
    assert len({c.text for row in found for c in row}) > 5  # by itself that server is greedy


@pytest.mark.parametrize("prompt", ["abc", [5, 6, 7], [{"role": "user", "content": "abc"}]])
@pytest.mark.parametrize("params", [GREEDY, SamplingParams(max_new_tokens=8, top_k=1, seed=0)])
def test_text_ids_and_messages_are_continued_as_by_the_model_itself(
    connect, local, tokenizer, prompt, params
):
    ((found,),) = connect().sample([prompt], params=params)
    ((wanted,),) = HFSampler(local, tokenizer).sample([prompt], params=GREEDY)
    assert found.text == wanted.text


def test_messages_need_no_tokenizer_of_ours(connect, local, tokenizer):
    messages = [{"role": "user", "content": "abc"}]
    sampler = connect(tokenizer=None)
    ((found,),) = sampler.sample([messages], params=GREEDY)
    ((wanted,),) = HFSampler(local, tokenizer).sample([messages], params=GREEDY)
    assert found.text == wanted.text
    assert {path for path, _ in sampler.posted} == {"/chat/completions"}


def test_ids_without_a_tokenizer_are_an_error_that_says_so(connect):
    with pytest.raises(ValueError, match="takes no token ids"):
        connect(tokenizer=None).sample([[5, 6]], params=GREEDY)


def test_the_law_is_the_one_that_was_asked_for(connect, local, tokenizer):
    """Chi-square of one character; the seeds are fixed, a false alarm in 1 of 1000 of them."""
    params = SamplingParams(max_new_tokens=1, temperature=0.6, top_k=6, seed=0)
    (found,) = connect(max_concurrency=1).sample(["ab"], num_samples=250, params=params)
    ids = tokenizer("ab", return_tensors="pt").input_ids
    with torch.no_grad():
        best = (local(input_ids=ids).logits[0, -1] / 0.6).topk(6)
    probs = best.values.softmax(-1).tolist()
    law = {tokenizer.decode([i]): p for i, p in zip(best.indices, probs, strict=True)}
    texts = [completion.text for completion in found]
    assert set(texts) <= set(law)
    expected = [250 * p for p in law.values()]
    assert min(expected) > 5
    assert stats.chisquare([texts.count(t) for t in law], expected).pvalue > 1e-3


def test_seeds_repeat_the_result_one_request_at_a_time(connect):
    sampler = connect(max_concurrency=1)
    params = SamplingParams(max_new_tokens=12, seed=4)
    first, second = (sampler.sample(["ab"], num_samples=3, params=params) for _ in range(2))
    assert first == second


def test_stop_strings_which_the_server_leaves_in_are_cut_off(connect, local, tokenizer):
    ((free,),) = HFSampler(local, tokenizer).sample(["ab"], params=GREEDY)
    stop = free.text[3:5]
    params = SamplingParams(max_new_tokens=8, temperature=0, stop=(stop,))
    ((found,),) = connect().sample(["ab"], params=params)
    assert found.text == free.text[: free.text.index(stop)]
    assert found.finish_reason == "stop"


def test_a_model_that_is_not_served_is_an_error_at_once(server):
    with (
        EndpointSampler(server.url, "another") as sampler,
        pytest.raises(ValueError, match=r"another"),
    ):
        sampler.sample(["ab"], num_samples=4, params=GREEDY)


@pytest.mark.slow
def test_what_was_sampled_before_the_server_died_is_kept(start, tokenizer):
    server = start()
    options = {"max_concurrency": 2, "num_retries": 1, "backoff": 0.01}
    params = SamplingParams(max_new_tokens=12)
    with EndpointSampler(server.url, server.name, **options) as sampler:
        threading.Timer(2.0, server.process.kill).start()
        (found,) = sampler.sample(["ab"], num_samples=600, params=params)
        assert len(found) == 600
        reasons = [completion.finish_reason for completion in found]
        first_error = reasons.index("error")
        assert first_error > 5
        assert reasons[first_error + 2 :] == ["error"] * (600 - first_error - 2)
        assert all(c.text == "" and c.token_ids is None for c in found[first_error + 2 :])
        with pytest.raises(ConnectionError, match="did not answer in 2 attempts"):
            sampler.sample(["ab"], params=params)
