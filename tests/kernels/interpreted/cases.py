"""Random blocks of speculative decoding whose decisions do not hang on rounding."""

import torch

from selftrain.ops.philox import Stream, uniform
from selftrain.ops.verification import sample_tokens, verify_draft

MARGIN = 1e-4


def draft_block(batch, drafted, vocab, *, dtype=torch.float32, seed=0, spread=3.0, **warp):
    """Return arguments of ``verify_draft``, the draft's tokens drawn from its warped law."""
    rng = torch.Generator().manual_seed(seed)
    target = spread * torch.randn(batch, drafted + 1, vocab, generator=rng)
    draft = target[:, :-1] + torch.randn(batch, drafted, vocab, generator=rng)
    target, draft = target.to(dtype), draft.to(dtype)
    seeds = torch.randint(2**62, (batch,), generator=rng)
    starts = torch.randint(4096, (batch,), generator=rng)
    tokens = [
        sample_tokens(
            draft[:, slot],
            seeds=seeds,
            positions=starts,
            stream=Stream.DRAFT,
            slot=slot,
            backend="eager",
            **warp,
        )
        for slot in range(drafted)
    ]
    tokens = torch.stack(tokens, 1) if tokens else torch.zeros(batch, 0, dtype=torch.int64)
    return target, draft, tokens, {"seeds": seeds, "starts": starts, **warp}


def assert_equal_verdicts(target, draft, tokens, options, rule):
    """Assert that the kernels find what eager code finds: tokens exactly, chances to 1e-5."""
    want = verify_draft(target, draft, tokens, rule=rule, backend="eager", **options)
    got = verify_draft(target, draft, tokens, rule=rule, backend="triton", **options)
    assert got.num_accepted.tolist() == want.num_accepted.tolist()
    assert got.next_tokens.tolist() == want.next_tokens.tolist()
    torch.testing.assert_close(got.overlap, want.overlap, atol=1e-5, rtol=0)
    return want


def is_safe(target, draft, tokens, options):
    """Whether no accept test of the token rule and no running sum lies within the margin."""
    seeds, starts = options["seeds"].unsqueeze(1), options["starts"].unsqueeze(1)
    p, q = target.double().softmax(-1), draft.double().softmax(-1)
    index = tokens.clamp(min=0).unsqueeze(-1)
    ratio = (p[:, :-1].gather(-1, index) / q.gather(-1, index)).squeeze(-1)
    slot = torch.arange(tokens.shape[1])
    u = uniform(seeds, stream=Stream.ACCEPT, position=starts, slot=slot)
    return bool(((u - ratio).abs() > MARGIN).all())
