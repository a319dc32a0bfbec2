"""Exactness of verification, by complete enumeration.

All probabilities are multiples of 1/4, so acceptance ratios and residual shares are multiples of
1/12 and an even grid of 12 uniforms integrates over the noise without error.
"""

import itertools

import pytest
import torch

from selftrain.ops.verify import verify_greedy, verify_tokens

GRID = (torch.arange(12, dtype=torch.float64) + 0.5) / 12


def random_laws(shape, vocab, seed):
    """Laws in multiples of 1/4."""
    rng = torch.Generator().manual_seed(seed)
    draws = torch.randint(vocab, (*shape, 4), generator=rng)
    return torch.nn.functional.one_hot(draws, vocab).double().mean(-2)


def output_law(p_tables, q_tables, num_drafted, verify=verify_tokens):
    """Return the law of the first ``num_drafted + 1`` output tokens of one block, completed by p.

    ``p_tables[i]`` has shape ``[vocab] * i + [vocab]``: the law of token i given those before it.
    """
    vocab = p_tables[0].shape[-1]
    law = torch.zeros([vocab] * (num_drafted + 1), dtype=torch.float64)
    noise = torch.cartesian_prod(*[GRID] * (num_drafted + 1)).view(-1, num_drafted + 1)
    for drafted in itertools.product(range(vocab), repeat=num_drafted):
        q_rows = torch.stack([q_tables[i][drafted[:i]] for i in range(num_drafted)])
        p_rows = torch.stack([p_tables[i][drafted[:i]] for i in range(num_drafted + 1)])
        weight = torch.prod(q_rows[torch.arange(num_drafted), list(drafted)])
        if weight == 0:
            continue
        n = len(noise)
        verdict = verify(
            p_rows.log().expand(n, -1, -1),
            q_rows.log().expand(n, -1, -1),
            torch.tensor(drafted).expand(n, -1),
            accept_uniforms=noise[:, :num_drafted],
            emit_uniforms=noise[:, -1:].expand(-1, num_drafted + 1),
        )
        outcomes = torch.stack([verdict.num_accepted, verdict.next_tokens], 1)
        found, counts = outcomes.unique(dim=0, return_counts=True)
        for (accepted, token), count in zip(found.tolist(), counts.tolist(), strict=True):
            prefix = (*drafted[:accepted], token)
            law[prefix] += weight * count / n * completion(p_tables, prefix, num_drafted + 1)
    return law


def completion(p_tables, prefix, length):
    """Return the target's joint law of the tokens that follow ``prefix``."""
    if len(prefix) == length:
        return torch.ones((), dtype=torch.float64)
    following = p_tables[len(prefix)][prefix]
    tails = [completion(p_tables, (*prefix, v), length) for v in range(len(following))]
    return torch.stack([w * tail for w, tail in zip(following, tails, strict=True)])


@pytest.mark.parametrize("num_drafted", [1, 2, 3])
@pytest.mark.parametrize("vocab", [2, 3])
@pytest.mark.parametrize("seed", range(3))
def test_output_law_is_the_targets_by_enumeration(num_drafted, vocab, seed):
    shapes = [[vocab] * i for i in range(num_drafted + 1)]
    p_tables = [random_laws(shape, vocab, 100 * seed + i) for i, shape in enumerate(shapes)]
    q_tables = [random_laws(shape, vocab, 777 * seed + i + 50) for i, shape in enumerate(shapes)]
    law = output_law(p_tables, q_tables, num_drafted)
    torch.testing.assert_close(law, completion(p_tables, (), num_drafted + 1), atol=1e-12, rtol=0)


def test_enumeration_detects_resampling_from_the_target_instead_of_the_residual():
    def no_residual(target_logits, draft_logits, draft_tokens, *, accept_uniforms, emit_uniforms):
        verdict = verify_tokens(
            target_logits,
            draft_logits,
            draft_tokens,
            accept_uniforms=accept_uniforms,
            emit_uniforms=emit_uniforms,
        )
        rows = target_logits[torch.arange(len(target_logits)), verdict.num_accepted]
        cdf = rows.softmax(-1).cumsum(-1)
        noise = emit_uniforms[:, :1] * cdf[:, -1:]
        return verdict._replace(next_tokens=torch.searchsorted(cdf, noise, right=True)[:, 0])

    p = [torch.tensor([0.25, 0.75]).double(), random_laws([2], 2, 1)]
    q = [torch.tensor([0.75, 0.25]).double(), random_laws([2], 2, 2)]
    law = output_law(p, q, 1, no_residual)
    assert (law - completion(p, (), 2)).abs().max() > 0.01


def block(p, q, token, u, emit=0.5, drafted=1):
    return verify_tokens(
        torch.tensor(p).log().expand(1, drafted + 1, -1),
        torch.tensor(q).log().expand(1, drafted, -1),
        torch.tensor([[token] * drafted]),
        accept_uniforms=torch.full((1, drafted), u, dtype=torch.float64),
        emit_uniforms=torch.full((1, drafted + 1), emit, dtype=torch.float64),
    )


def test_a_token_that_the_target_never_samples_falls_even_when_the_uniform_is_zero():
    assert block([0.0, 1.0], [0.5, 0.5], token=0, u=0.0).num_accepted.item() == 0


def test_overlap_is_one_minus_total_variation():
    overlap = block([0.55, 0.25, 0.15, 0.05], [0.25, 0.40, 0.10, 0.25], 0, 0.5).overlap
    assert overlap.item() == pytest.approx(0.65)


@pytest.mark.parametrize(("drafted", "want"), [(1, 2 / 3), (2, 10 / 9), (3, 38 / 27)])
def test_mean_accepted_tokens_equal_the_closed_form(drafted, want):
    """Context-free p = (1/3, 2/3), q = (2/3, 1/3): sum of beta^i with beta = 2/3."""
    p, q, noise = [1 / 3, 2 / 3], [2 / 3, 1 / 3], torch.cartesian_prod(*[GRID] * drafted)
    mean = 0.0
    for tokens in itertools.product(range(2), repeat=drafted):
        n = len(noise)
        verdict = verify_tokens(
            torch.tensor(p, dtype=torch.float64).log().expand(n, drafted + 1, 2),
            torch.tensor(q, dtype=torch.float64).log().expand(n, drafted, 2),
            torch.tensor(tokens).expand(n, -1),
            accept_uniforms=noise.view(n, drafted),
            emit_uniforms=torch.full((n, drafted + 1), 0.5, dtype=torch.float64),
        )
        weight = torch.tensor(q, dtype=torch.float64)[list(tokens)].prod().item()
        mean += weight * verdict.num_accepted.double().mean().item()
    assert mean == pytest.approx(want, abs=1e-12)


def test_equal_laws_accept_everything():
    assert block([0.3, 0.7], [0.3, 0.7], token=1, u=1 - 2.0**-52, drafted=4).num_accepted == 4


def test_disjoint_supports_accept_nothing_and_emit_from_the_target():
    verdict = block([0.0, 0.5, 0.5], [1.0, 0.0, 0.0], token=0, u=0.0, emit=0.9)
    assert (verdict.num_accepted.item(), verdict.next_tokens.item()) == (0, 2)


def test_a_void_slot_ends_the_block_and_the_next_token_is_the_targets():
    logits = torch.tensor([0.25, 0.75]).log().expand(12, 2, 2)
    verdict = verify_tokens(
        logits,
        torch.tensor([[[0.9, 0.1]]]).log().expand(12, 1, 2),
        torch.full((12, 1), -1),
        accept_uniforms=torch.zeros(12, 1, dtype=torch.float64),
        emit_uniforms=GRID.view(-1, 1).expand(-1, 2),
    )
    assert verdict.num_accepted.sum() == 0
    assert verdict.next_tokens.bincount().tolist() == [3, 9]


def test_greedy_accepts_up_to_the_first_difference_and_corrects_it():
    logits = torch.nn.functional.one_hot(torch.tensor([[4, 2, 3, 1]]), 5).float()
    verdict = verify_greedy(logits, torch.tensor([[4, 2, 0]]))
    assert (verdict.num_accepted.item(), verdict.next_tokens.item()) == (2, 3)


def test_greedy_breaks_ties_towards_the_lowest_id():
    assert verify_greedy(torch.ones(1, 2, 4), torch.tensor([[1]])).next_tokens.item() == 0
