import time
from itertools import pairwise

import pytest
import torch
from model_server import ModelServer

from selftrain.distill.teachers import EndpointTeacher
from selftrain.ops import divergence, topk_divergence
from selftrain.training.batch import TokenRow, collate, scored_logits

VOCABULARY = 47


@pytest.fixture
def serve(teacher):
    """Serve the teacher, and ask it: ``serve(faults=[503])``."""
    opened = []

    def start(model=None, *, top_k=5, ask_for="tiny", options=None, **settings):
        server = ModelServer(model or teacher, **settings)
        server.__enter__()
        opened.append(server)
        settings = {"backoff": 0.001, "timeout": 20.0, **(options or {})}
        asking = EndpointTeacher(server.url, ask_for, top_k=top_k, **settings)
        opened.append(asking)
        return server, asking

    yield start
    for thing in reversed(opened):
        thing.__exit__()


def local(teacher, batch):
    with torch.no_grad():
        return scored_logits(teacher, batch, slices_logits=False).log_softmax(-1)


def test_all_tokens_of_a_server_are_the_models_own_law(serve, teacher, batch):
    found = serve(top_k=VOCABULARY)[1].targets(batch)
    full = torch.empty(found.log_probs.shape).scatter(1, found.token_ids, found.log_probs)
    torch.testing.assert_close(full, local(teacher, batch))
    assert (found.log_probs.diff(dim=-1) <= 0).all()


@pytest.mark.parametrize("top_k", [1, 4, 20])
def test_the_k_best_tokens_come_whether_the_texts_own_is_among_them_or_not(
    serve, teacher, batch, top_k
):
    found = serve(top_k=top_k)[1].targets(batch)
    best = local(teacher, batch).topk(top_k)
    torch.testing.assert_close(found.log_probs, best.values)
    assert torch.equal(found.token_ids, best.indices)
    own_is_out = (found.token_ids != batch.labels[:, None]).all(1)
    assert own_is_out.any()


@pytest.mark.parametrize("kind", ["forward_kl", "reverse_kl", "jsd", "total_variation"])
def test_the_loss_from_a_server_is_the_local_one_over_all_tokens_and_never_more_over_few(
    serve, teacher, student, batch, kind
):
    logits = scored_logits(student, batch, slices_logits=False).detach()
    dense = divergence(logits, local(teacher, batch), kind=kind)
    values = []
    for top_k in (VOCABULARY, 12, 2):
        found = serve(top_k=top_k)[1].targets(batch)
        values.append(topk_divergence(logits, found.token_ids, found.log_probs, kind=kind))
    torch.testing.assert_close(values[0], dense, rtol=1e-4, atol=1e-6)
    for more, fewer in pairwise(values):
        assert (fewer <= more + 1e-6).all()
    assert (values[2] < 0.99 * values[0]).all()


def test_a_row_is_asked_for_once_as_token_ids_and_only_if_it_is_scored(serve, batch, rows):
    server, asking = serve(top_k=3)
    asking.targets(batch)
    prompts = sorted(tuple(body["prompt"]) for body in server.requests)
    scored = [row.prompt_ids + row.completion_ids for row in rows if row.mask != (False, False)]
    assert prompts == sorted(scored)
    assert all(body["prompt_logprobs"] == 3 and body["max_tokens"] == 1 for body in server.requests)


def test_a_batch_with_nothing_scored_asks_nothing(serve, rows):
    server, asking = serve(top_k=3)
    found = asking.targets(collate([rows[3]]))
    assert found.token_ids.shape == found.log_probs.shape == (0, 3)
    assert server.requests == []


def test_rows_are_asked_for_concurrently_up_to_the_limit_and_connections_are_kept(serve):
    rows = [TokenRow(prompt_ids=(3,), completion_ids=(i, 5)) for i in range(6, 18)]
    server, asking = serve(options={"max_concurrency": 3}, faults=[0.04] * 24)
    for _ in range(2):
        asking.targets(collate(rows))
    assert server.most_at_once == 3
    assert server.num_connections <= 3


def test_rows_come_back_in_order_however_long_each_takes(serve, teacher):
    rows = [TokenRow(prompt_ids=(3,), completion_ids=(i, 5)) for i in range(6, 12)]
    _, asking = serve(top_k=2, faults=[0.1, 0.0, 0.05, 0.0, 0.0, 0.02])
    found = asking.targets(collate(rows))
    assert torch.equal(found.token_ids, local(teacher, collate(rows)).topk(2).indices)


@pytest.mark.parametrize("fault", [503, 429, 500, (429, {"Retry-After": "0"})])
def test_a_passing_fault_is_tried_again(serve, teacher, batch, fault):
    server, asking = serve(faults=[fault, fault])
    found = asking.targets(batch)
    assert torch.equal(found.token_ids, local(teacher, batch).topk(5).indices)
    assert len(server.requests) == 4 + 2


def test_silence_is_tried_again_and_then_an_error(serve, batch):
    _, asking = serve(faults=[0.8, 0.8], options={"timeout": 0.4, "num_retries": 4})
    asking.targets(collate([batch.token_rows[0]]))
    _, asking = serve(faults=[0.3] * 9, options={"timeout": 0.05, "num_retries": 1})
    with pytest.raises(ConnectionError, match=r"in 2 attempts.*no answer within 0\.05 s"):
        asking.targets(batch)


def test_waits_double(serve, batch):
    _, asking = serve(faults=[503] * 3, options={"backoff": 0.02, "max_concurrency": 1})
    start = time.perf_counter()
    asking.targets(collate([batch.token_rows[0]]))
    assert time.perf_counter() - start >= 0.02 * (1 + 2 + 4)


def test_a_lasting_fault_names_server_and_reason(serve, batch):
    _, asking = serve(faults=[503] * 99, options={"num_retries": 2})
    with pytest.raises(ConnectionError, match=r"127\.0\.0\.1.*3 attempts.*status 503: try later"):
        asking.targets(batch)


def test_an_address_where_nobody_listens_is_an_error(batch):
    with (
        EndpointTeacher("http://127.0.0.1:9/v1", "tiny", num_retries=0) as asking,
        pytest.raises(ConnectionError, match=r"http://127\.0\.0\.1:9/v1 did not answer"),
    ):
        asking.targets(batch)


def test_a_server_that_ignores_the_parameter_is_named_with_the_way_out(serve, batch):
    def without(answer):
        del answer["choices"][0]["prompt_logprobs"]
        return answer

    _, asking = serve(edit=without)
    with pytest.raises(ValueError, match=r"answered without prompt_logprobs.*write_teacher_cache"):
        asking.targets(batch)


def test_a_server_that_reads_other_tokens_is_noticed(serve, batch):
    def longer(answer):
        answer["choices"][0]["prompt_logprobs"].append(None)
        return answer

    def others(answer):
        entries = answer["choices"][0]["prompt_logprobs"]
        answer["choices"][0]["prompt_logprobs"] = [None, *({"46": e["46"]} for e in entries[1:])]
        return answer

    def cut(answer):
        entries = answer["choices"][0]["prompt_logprobs"]
        answer["choices"][0]["prompt_logprobs"] = [None] * len(entries)
        return answer

    with pytest.raises(ValueError, match=r"no log-probabilities for the beginning.*prefix-caching"):
        serve(edit=cut)[1].targets(batch)
    with pytest.raises(ValueError, match=r"of \d tokens for a row of \d"):
        serve(edit=longer)[1].targets(batch)
    with pytest.raises(ValueError, match=r"says nothing of token \d+ at its place"):
        serve(edit=others, top_k=VOCABULARY)[1].targets(batch)


def test_more_tokens_than_the_vocabulary_has_are_refused(serve, batch):
    with pytest.raises(ValueError, match="returned 47 tokens at a position, top_k=48"):
        serve(top_k=48)[1].targets(batch)


def test_more_tokens_than_the_server_allows_are_refused_with_its_option(serve, batch):
    server, asking = serve(top_k=30, max_logprobs=20)
    with pytest.raises(ValueError, match=r"greater than max allowed: 20.*--max-logprobs 30"):
        asking.targets(batch)
    assert len(server.requests) <= 4  # it is not tried again


def test_a_wrong_model_is_answered_with_those_there_are(serve, batch):
    with pytest.raises(ValueError, match=r"It serves 'tiny'; choose one .* not 'huge'"):
        serve(ask_for="huge")[1].targets(batch)


def test_a_key_is_sent_and_asked_for(serve, batch):
    with pytest.raises(ValueError, match=r"401.*api_key"):
        serve(key="secret")[1].targets(batch)
    serve(key="secret", options={"api_key": "secret"})[1].targets(batch)


def test_an_answer_that_is_not_json_is_an_error(serve, batch):
    with pytest.raises(ValueError, match=r"not JSON: '<html>'"):
        serve(faults=["<html>"] * 9)[1].targets(batch)


def test_a_token_without_probability_has_minus_infinity(serve, teacher, batch):
    class Banned(torch.nn.Module):
        def forward(self, input_ids):
            out = teacher(input_ids)
            out.logits[..., 40] = -torch.inf
            return out

    found = serve(Banned(), top_k=VOCABULARY)[1].targets(batch)
    banned = found.token_ids == 40
    assert banned.any(1).all()
    assert torch.equal(found.log_probs == -torch.inf, banned)


def test_an_encoder_decoder_is_refused(serve, seq2seq_batch):
    with pytest.raises(ValueError, match="decoder-only students"):
        serve()[1].targets(seq2seq_batch)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"top_k": 0}, "top_k must satisfy 1 <= top_k"),
        ({"max_concurrency": 0}, "max_concurrency must satisfy"),
        ({"timeout": 0.0}, "timeout must satisfy 0.0 < timeout"),
        ({"num_retries": -1}, "num_retries must satisfy"),
        ({"base_url": "localhost:8000"}, "base_url must begin with http"),
    ],
)
def test_bad_arguments_are_refused(options, text):
    options = {"base_url": "http://localhost:1/v1", **options}
    with pytest.raises(ValueError, match=text):
        EndpointTeacher(model="tiny", **options)
