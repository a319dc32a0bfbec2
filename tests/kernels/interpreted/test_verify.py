"""The kernels decide as the eager reference does, token for token."""

import pytest
import torch
from cases import assert_equal_verdicts, draft_block, is_safe

from selftrain.ops.verification import sample_tokens, verify_draft

RULES = ["token", "block", "greedy", "coupled"]
SAMPLED = ["token", "block"]


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("vocab", [1, 127, 128, 129, 2311])
def test_ragged_vocabularies(rule, vocab):
    block = draft_block(2, 3, vocab, seed=vocab)
    assert is_safe(*block)
    assert_equal_verdicts(*block, rule)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision(rule, dtype):
    assert_equal_verdicts(*draft_block(3, 2, 257, dtype=dtype, seed=1), rule)


@pytest.mark.parametrize("rule", ["token", "block", "coupled"])
@pytest.mark.parametrize(
    "warp",
    [
        {"temperature": 0.7},
        {"temperature": torch.tensor([0.5, 1.7])},
        {"top_k": 9, "temperature": 1.5},
        {"top_p": 0.8},
        {"min_p": 0.05, "top_k": 30, "top_p": 0.9},
    ],
    ids=str,
)
def test_warped_laws(rule, warp):
    assert_equal_verdicts(*draft_block(2, 1, 129, dtype=torch.bfloat16, seed=2, **warp), rule)


@pytest.mark.parametrize("rule", SAMPLED)
def test_decisions_over_many_rows(rule):
    """Enough rows that every outcome occurs: none accepted, some, all."""
    block = draft_block(24, 3, 50, seed=5, spread=1.0)
    accepted = assert_equal_verdicts(*block, rule).num_accepted
    assert set(accepted.tolist()) == {0, 1, 2, 3}


@pytest.mark.parametrize("rule", SAMPLED)
def test_drafts_chosen_without_chance(rule):
    """One-hot laws; the drafted tokens are likely ones, in two different blocks of logits."""
    target, _, tokens, options = draft_block(6, 3, 1100, seed=6, spread=4.0)
    want = assert_equal_verdicts(target, None, tokens, options, rule)
    assert 0 < want.num_accepted.float().mean() < 3


@pytest.mark.parametrize("rule", SAMPLED)
def test_a_certain_one_hot_draft_leaves_no_residual(rule):
    """p = q = one-hot: whatever was drafted elsewhere, the next token is the target's own."""
    target = torch.full((2, 2, 40), -torch.inf)
    target[..., 7] = 0.0
    address = {"seeds": torch.tensor([3, 4]), "starts": torch.tensor([0, 9])}
    for token in (7, 8):
        tokens = torch.full((2, 1), token)
        want = assert_equal_verdicts(target, None, tokens, address, rule)
        assert want.next_tokens.tolist() == [7, 7]


@pytest.mark.parametrize("rule", RULES)
def test_void_drafts_end_the_block(rule):
    target, draft, tokens, options = draft_block(4, 3, 60, seed=7)
    tokens[0, 0] = tokens[1, 1] = tokens[2, 2] = -1
    draft[0] = draft[1, 1:] = torch.nan  # nothing there is read
    want = assert_equal_verdicts(target, draft, tokens, options, rule)
    assert (want.num_accepted <= torch.tensor([0, 1, 2, 3])).all()


@pytest.mark.parametrize("rule", RULES)
def test_nothing_drafted_is_plain_decoding(rule):
    assert_equal_verdicts(*draft_block(3, 0, 129, seed=8), rule)


@pytest.mark.parametrize("rule", RULES)
def test_banned_tokens_are_never_emitted(rule):
    target, draft, tokens, options = draft_block(3, 2, 300, seed=9)
    target[..., 1::2] = -torch.inf
    want = assert_equal_verdicts(target, draft, tokens, options, rule)
    assert (want.next_tokens % 2 == 0).all()


@pytest.mark.parametrize("rule", SAMPLED)
def test_disjoint_supports_accept_nothing(rule):
    target, draft, _, options = draft_block(3, 2, 64, seed=10)
    target[..., :32] = -torch.inf
    draft[..., 32:] = -torch.inf
    tokens = draft.argmax(-1)
    want = assert_equal_verdicts(target, draft, tokens, options, rule)
    assert want.num_accepted.tolist() == [0, 0, 0]
    assert (want.overlap == 0).all()


@pytest.mark.parametrize("rule", SAMPLED)
def test_equal_laws_accept_everything(rule):
    target, _, tokens, options = draft_block(3, 3, 64, seed=11)
    want = assert_equal_verdicts(target, target[:, :-1].clone(), tokens, options, rule)
    assert want.num_accepted.tolist() == [3, 3, 3]


@pytest.mark.parametrize("rule", SAMPLED)
def test_a_token_that_the_draft_gives_no_mass_is_void(rule):
    target, draft, tokens, options = draft_block(2, 2, 64, seed=12)
    draft[0].scatter_(1, tokens[0].unsqueeze(1), -torch.inf)
    want = assert_equal_verdicts(target, draft, tokens, options, rule)
    assert want.num_accepted[0] == 0


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("value", [torch.nan, -torch.inf, torch.inf], ids=str)
def test_logits_that_are_no_law_give_the_token_minus_one(rule, value):
    """The first row is masked, broken or infinite where its next token would come from."""
    target, _, tokens, options = draft_block(2, 1, 40, seed=13)
    tokens[:] = -1
    target[0, 0, 3:] = value
    target[0, 0, :3] = -torch.inf
    want = assert_equal_verdicts(target, None, tokens, options, rule)
    assert want.next_tokens[0] == -1
    assert want.next_tokens[1] >= 0


@pytest.mark.parametrize("rule", SAMPLED)
def test_masked_rows_stay_no_law_under_a_warp(rule):
    target, _, tokens, options = draft_block(3, 1, 40, seed=14)
    tokens[:] = -1
    target[0, 0], target[1, 0, 5] = -torch.inf, torch.nan
    options |= {"top_k": 3, "top_p": 0.9, "min_p": 0.01}
    got = verify_draft(target, None, tokens, rule=rule, backend="triton", **options)
    assert got.next_tokens[:2].tolist() == [-1, -1]
    assert got.next_tokens[2] >= 0


@pytest.mark.parametrize("rule", RULES)
def test_rows_need_not_be_contiguous(rule):
    target, draft, tokens, options = draft_block(2, 2, 200, seed=15)
    wide = torch.zeros(2, 5, 333)
    wide[:, 1:4, 60:260] = target
    other = torch.zeros(2, 2, 2, 250)
    other[:, :, 1, :200] = draft
    target, draft = wide[:, 1:4, 60:260], other[:, :, 1, :200]
    assert not target.is_contiguous()
    assert_equal_verdicts(target, draft, tokens, options, rule)


@pytest.mark.parametrize("rule", RULES)
def test_a_row_is_decided_alone_as_in_a_batch(rule):
    target, draft, tokens, options = draft_block(3, 2, 100, seed=16)
    together = verify_draft(target, draft, tokens, rule=rule, backend="triton", **options)
    one = {name: value[1:2] for name, value in options.items()}
    alone = verify_draft(target[1:2], draft[1:2], tokens[1:2], rule=rule, backend="triton", **one)
    for whole, part in zip(together, alone, strict=True):
        assert torch.equal(whole[1:2], part)


def test_greedy_ties_go_to_the_lowest_id_across_blocks():
    target = torch.zeros(1, 1, 2100)
    target[0, 0, [1030, 2050]] = 1.0
    address = {"seeds": torch.tensor([0]), "starts": torch.tensor([0])}
    tokens = torch.zeros(1, 0, dtype=torch.int64)
    assert assert_equal_verdicts(target, None, tokens, address, "greedy").next_tokens == 1030


def test_the_overlap_may_be_left_out():
    target, draft, tokens, options = draft_block(4, 3, 100, seed=17)
    full = verify_draft(target, draft, tokens, rule="token", backend="triton", **options)
    for backend in ("eager", "triton"):
        bare = verify_draft(
            target, draft, tokens, rule="token", backend=backend, overlap=False, **options
        )
        assert torch.equal(bare.num_accepted, full.num_accepted)
        assert torch.equal(bare.next_tokens, full.next_tokens)
        assert bare.overlap.isnan().all()


@pytest.mark.parametrize("warp", [{}, {"top_k": 10, "top_p": 0.8}, {"min_p": 0.1}], ids=str)
def test_sampling_takes_the_tokens_of_the_reference(warp):
    rng = torch.Generator().manual_seed(18)
    logits = 2 * torch.randn(4, 1100, generator=rng)
    address = {"seeds": torch.arange(4), "positions": torch.arange(4) + 7, "stream": 2, "slot": 3}
    want = sample_tokens(logits, backend="eager", **address, **warp)
    assert sample_tokens(logits, backend="triton", **address, **warp).tolist() == want.tolist()
