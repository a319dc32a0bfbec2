"""On a GPU the kernels find what torch finds there, and never make the host wait."""

import pytest
import torch

from selftrain.ops.philox import Stream
from selftrain.ops.verification import sample_tokens, verify_draft

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]
RULES = ["token", "block", "greedy", "coupled"]
WARPS = [{}, {"temperature": 0.7}, {"top_k": 50, "top_p": 0.9}, {"min_p": 0.05, "top_p": 0.95}]


def gpu_block(batch, drafted, vocab, *, dtype, seed, **warp):
    rng = torch.Generator("cuda").manual_seed(seed)
    options = {"generator": rng, "device": "cuda"}
    target = 3 * torch.randn(batch, drafted + 1, vocab, **options)
    draft = target[:, :-1] + torch.randn(batch, drafted, vocab, **options)
    target, draft = target.to(dtype), draft.to(dtype)
    seeds = torch.randint(2**62, (batch,), **options)
    starts = torch.randint(4096, (batch,), **options)
    tokens = [
        sample_tokens(
            draft[:, i], seeds=seeds, positions=starts, stream=Stream.DRAFT, slot=i, **warp
        )
        for i in range(drafted)
    ]
    return target, draft, torch.stack(tokens, 1), {"seeds": seeds, "starts": starts, **warp}


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("warp", WARPS, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("vocab", [1, 127, 128, 129, 32000, 50257, 151936])
def test_tokens_are_those_of_torch(rule, warp, dtype, vocab):
    target, draft, tokens, options = gpu_block(16, 5, vocab, dtype=dtype, seed=vocab, **warp)
    want = verify_draft(target, draft, tokens, rule=rule, backend="eager", **options)
    got = verify_draft(target, draft, tokens, rule=rule, backend="triton", **options)
    assert got.num_accepted.tolist() == want.num_accepted.tolist()
    assert got.next_tokens.tolist() == want.next_tokens.tolist()
    torch.testing.assert_close(got.overlap, want.overlap, atol=1e-5, rtol=0)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("warp", WARPS, ids=str)
def test_two_runs_are_equal_to_the_bit(rule, warp):
    target, draft, tokens, options = gpu_block(8, 5, 32000, dtype=torch.bfloat16, seed=1, **warp)
    one = verify_draft(target, draft, tokens, rule=rule, backend="triton", **options)
    two = verify_draft(target, draft, tokens, rule=rule, backend="triton", **options)
    assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))


@pytest.mark.parametrize("rule", RULES)
def test_the_host_never_waits(rule):
    warp = {"top_k": 50, "top_p": 0.9}
    target, draft, tokens, options = gpu_block(4, 5, 32000, dtype=torch.bfloat16, seed=2, **warp)
    verify_draft(target, draft, tokens, rule=rule, backend="triton", **options)  # compiles
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        verify_draft(target, draft, tokens, rule=rule, backend="triton", **options)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("rule", RULES)
def test_a_cuda_graph_replays_to_the_same_verdict(rule):
    target, draft, tokens, options = gpu_block(4, 5, 32000, dtype=torch.bfloat16, seed=3)

    def verify():
        return verify_draft(target, draft, tokens, rule=rule, backend="triton", **options)

    want = verify()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        got = verify()
    graph.replay()
    torch.cuda.synchronize()
    assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))


@pytest.mark.parametrize("rule", RULES)
def test_no_memory_of_the_size_of_the_vocabulary(rule):
    warp = {"top_p": 0.9}
    target, draft, tokens, options = gpu_block(8, 5, 151936, dtype=torch.bfloat16, seed=4, **warp)
    verify_draft(target, draft, tokens, rule=rule, backend="triton", **options)
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    verify_draft(target, draft, tokens, rule=rule, backend="triton", **options)
    used = torch.cuda.max_memory_allocated() - before
    assert used < target.numel() * target.element_size() / 10


def test_inductor_compiles_it_as_one_graph():
    target, draft, tokens, options = gpu_block(4, 5, 32000, dtype=torch.bfloat16, seed=5)

    def verify(target, draft, tokens, seeds, starts):
        address = {"seeds": seeds, "starts": starts}
        return verify_draft(target, draft, tokens, rule="block", backend="triton", **address)

    arguments = (target, draft, tokens, options["seeds"], options["starts"])
    compiled = torch.compile(verify, fullgraph=True)(*arguments)
    assert torch.equal(compiled.next_tokens, verify(*arguments).next_tokens)
