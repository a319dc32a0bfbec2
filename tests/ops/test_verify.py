"""Exactness of verification, by integration over all its noise, to rounding."""

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from selftrain.ops import (
    gumbel,
    residual,
    uniform,
    verify_block,
    verify_coupled,
    verify_greedy,
    verify_tokens,
)

ALMOST_ONE = 1 - 2.0**-52
SAMPLING = {"token": verify_tokens, "block": verify_block}


class Integral:
    """What a verifier does with every draft of ``num_drafted`` tokens, integrated over its noise.

    The verifier is a black box of which two things are used: its accept tests compare each uniform
    with some threshold, and the next token grows with the emission uniform. The thresholds are
    found by bisection, then every pattern of outcomes is tried.

    ``p_tables[i]`` has shape ``[vocab] * i + [vocab]``: the law of token i given those before it.
    ``stops(token)`` ends a draft after such a token.
    """

    def __init__(self, verify, p_tables, q_tables, num_drafted, stops=None, one_hot=False):
        self.p_tables, self.k, self.vocab = p_tables, num_drafted, p_tables[0].shape[-1]
        drafts = list(itertools.product(range(self.vocab), repeat=num_drafted))
        self.tokens = torch.tensor(drafts)
        rows = range(num_drafted + 1)
        self.p = torch.stack([torch.stack([p_tables[i][d[:i]] for i in rows]) for d in drafts])
        self.q = torch.stack([torch.stack([q_tables[i][d[:i]] for i in rows[:-1]]) for d in drafts])
        self.weight = self.q.gather(-1, self.tokens.unsqueeze(-1)).squeeze(-1).prod(-1)
        if stops is not None:
            after = (stops(self.tokens).long().cumsum(-1) - stops(self.tokens).long()) > 0
            self.tokens = self.tokens.masked_fill(after, -1)
        self.verify, self.one_hot = verify, one_hot
        patterns = torch.tensor(list(itertools.product([True, False], repeat=num_drafted)))
        h = self.thresholds()
        # [draft, pattern]: the probability of the pattern, and uniforms that bring it about
        self.chance = torch.where(patterns, h.unsqueeze(1), 1 - h.unsqueeze(1)).prod(-1)
        self.uniforms = torch.where(patterns, 0.0, ALMOST_ONE).expand(len(drafts), -1, -1).double()
        self.accepted = self.call(self.uniforms, 0.5).num_accepted

    def call(self, accept, emit):
        """Call the verifier on uniforms ``[draft, trial, slot]``, for ``[draft, trial]``."""
        n, trials, _ = accept.shape

        def spread(x):
            return x.unsqueeze(1).expand(-1, trials, *x.shape[1:]).flatten(0, 1)

        emit = torch.as_tensor(emit, dtype=torch.float64).expand(n, trials)
        verdict = self.verify(
            spread(self.p).log(),
            None if self.one_hot else spread(self.q).log(),
            spread(self.tokens),
            accept_uniforms=accept.flatten(0, 1),
            emit_uniforms=emit.reshape(-1, 1).expand(-1, self.k + 1),
        )
        return type(verdict)(*(x.unflatten(0, (n, trials)) for x in verdict))

    def thresholds(self):
        """Return h ``[draft, slot]``: the earlier tests passing and the later ones failing."""
        slots = torch.arange(self.k)
        background = torch.where(slots < slots.unsqueeze(1), 0.0, ALMOST_ONE).double()
        background = background.expand(len(self.tokens), -1, -1)

        def stands(u):
            accept = torch.where(torch.eye(self.k, dtype=torch.bool), u.unsqueeze(-1), background)
            return self.call(accept, 0.5).num_accepted > slots

        return bisect(stands, (len(self.tokens), self.k))

    def law(self):
        """Return the joint law of ``num_drafted + 1`` tokens, those after the block from p."""
        n, trials = self.chance.shape
        below = torch.stack(
            [
                bisect(lambda e, v=v: self.call(self.uniforms, e).next_tokens <= v, (n, trials))
                for v in range(self.vocab - 1)
            ],
            -1,
        )
        edges = torch.nn.functional.pad(below, (1, 1))
        edges[..., -1] = 1
        share = edges.diff(dim=-1)
        law = torch.zeros([self.vocab] * (self.k + 1), dtype=torch.float64)
        for draft, pattern, token in itertools.product(range(n), range(trials), range(self.vocab)):
            mass = self.weight[draft] * self.chance[draft, pattern] * share[draft, pattern, token]
            if mass > 0:
                prefix = self.tokens[draft, : self.accepted[draft, pattern]].tolist()
                law[(*prefix, token)] += mass * completion(
                    self.p_tables, (*prefix, token), self.k + 1
                )
        return law

    def mean_accepted(self):
        return (self.weight.unsqueeze(1) * self.chance * self.accepted).sum().item()

    def at_least(self, i):
        """Return P(at least i stand | draft)."""
        return (self.chance * (self.accepted >= i)).sum(1)


def bisect(holds, shape):
    """Return the largest u in [0, 1] below which ``holds(u)``, elementwise."""
    low, high = torch.zeros(shape, dtype=torch.float64), torch.ones(shape, dtype=torch.float64)
    for _ in range(53):
        middle = (low + high) / 2
        below = holds(middle)
        low, high = torch.where(below, middle, low), torch.where(below, high, middle)
    return (low + high) / 2


def completion(p_tables, prefix, length):
    """Return the target's joint law of the tokens that follow ``prefix``."""
    if len(prefix) == length:
        return torch.ones((), dtype=torch.float64)
    following = p_tables[len(prefix)][prefix]
    tails = [completion(p_tables, (*prefix, v), length) for v in range(len(following))]
    return torch.stack([w * tail for w, tail in zip(following, tails, strict=True)])


def random_tables(num, vocab, seed, banned=0.0):
    """Random laws of ``num`` successive tokens; each token banned with some probability."""
    rng = torch.Generator().manual_seed(seed)
    tables = []
    for i in range(num):
        shape = [vocab] * (i + 1)
        table = -torch.rand(shape, generator=rng, dtype=torch.float64).log()
        keep = torch.rand(shape, generator=rng) >= banned
        keep[..., seed % vocab] = True
        tables.append(table * keep / (table * keep).sum(-1, keepdim=True))
    return tables


def fixed_tables(law, num):
    """The same law whatever came before."""
    law = torch.tensor(law, dtype=torch.float64)
    return [law.expand([len(law)] * (i + 1)) for i in range(num)]


# The law of the output ----------------------------------------------------------------------------


@pytest.mark.parametrize("rule", SAMPLING)
@pytest.mark.parametrize(
    ("vocab", "num_drafted", "banned"),
    [(2, 1, 0.0), (4, 1, 0.3), (3, 2, 0.0), (4, 2, 0.4), (3, 3, 0.2), (2, 4, 0.0)],
)
def test_output_law_is_the_targets(rule, vocab, num_drafted, banned):
    for seed in range(3):
        p = random_tables(num_drafted + 1, vocab, 2 * seed, banned)
        q = random_tables(num_drafted, vocab, 2 * seed + 1, banned)
        law = Integral(SAMPLING[rule], p, q, num_drafted).law()
        torch.testing.assert_close(law, completion(p, (), num_drafted + 1), atol=1e-12, rtol=0)


@pytest.mark.parametrize("rule", SAMPLING)
def test_output_law_is_the_targets_when_rows_stop_drafting_after_some_token(rule):
    p, q = random_tables(4, 3, 10), random_tables(3, 3, 11)
    law = Integral(SAMPLING[rule], p, q, 3, stops=lambda token: token == 1).law()
    torch.testing.assert_close(law, completion(p, (), 4), atol=1e-12, rtol=0)


@pytest.mark.parametrize("rule", SAMPLING)
def test_output_law_is_the_targets_for_drafts_chosen_without_chance(rule):
    p = random_tables(4, 3, 20)
    q = [torch.nn.functional.one_hot(t.argmax(-1), 3).double() for t in random_tables(3, 3, 21)]
    law = Integral(SAMPLING[rule], p, q, 3, one_hot=True).law()
    torch.testing.assert_close(law, completion(p, (), 4), atol=1e-12, rtol=0)


def test_integration_detects_resampling_from_the_target_instead_of_the_residual():
    def no_residual(target_logits, *args, emit_uniforms, **kwargs):
        verdict = verify_tokens(target_logits, *args, emit_uniforms=emit_uniforms, **kwargs)
        rows = target_logits[torch.arange(len(target_logits)), verdict.num_accepted]
        cdf = rows.softmax(-1).cumsum(-1)
        return verdict._replace(
            next_tokens=torch.searchsorted(cdf, emit_uniforms[:, :1].contiguous(), right=True)[:, 0]
        )

    p, q = random_tables(2, 3, 0), random_tables(1, 3, 1)
    law = Integral(no_residual, p, q, 1).law()
    assert (law - completion(p, (), 2)).abs().max() > 0.01


def test_integration_detects_a_block_rule_that_stops_at_the_first_failure():
    def first_failure(*args, accept_uniforms, **kwargs):
        # Every prefix must pass its own test of the block rule.
        counts = [
            verify_block(
                *args, accept_uniforms=torch.where(mask, accept_uniforms, ALMOST_ONE), **kwargs
            ).num_accepted
            for mask in torch.eye(accept_uniforms.shape[1], dtype=torch.bool)
        ]
        passed = torch.stack([c > i for i, c in enumerate(counts)], 1)
        least = torch.where(passed.long().cumprod(1) > 0, accept_uniforms, ALMOST_ONE)
        return verify_block(*args, accept_uniforms=least, **kwargs)

    p, q = random_tables(3, 2, 0), random_tables(2, 2, 1)
    law = Integral(first_failure, p, q, 2).law()
    assert (law - completion(p, (), 3)).abs().max() > 0.005


def test_dropping_an_unlikely_drafted_token_biases_the_law():
    """Why a row may only stop after a token that stays in the block (not after one dropped)."""
    p, q = random_tables(2, 3, 4), random_tables(1, 3, 5)
    dropped = q[0].argmin()
    law = Integral(verify_tokens, p, q, 1)
    law.tokens = law.tokens.masked_fill(law.tokens == dropped, -1)
    again = object.__new__(Integral)
    again.__dict__.update(law.__dict__)
    again.accepted = again.call(again.uniforms, 0.5).num_accepted
    assert (again.law() - completion(p, (), 2)).abs().max() > 0.01


# How many tokens stand ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rule", "accepted"),
    [("token", [2 / 3, 10 / 9, 38 / 27, 130 / 81]), ("block", [2 / 3, 11 / 9, 5 / 3, 166 / 81])],
)
def test_mean_accepted_tokens_of_a_two_token_law(rule, accepted):
    """p = (1/3, 2/3), q reversed; the exact fractions (the token rule's: sum of (2/3)^i)."""
    for k, want in enumerate(accepted, 1):
        p, q = fixed_tables([1 / 3, 2 / 3], k + 1), fixed_tables([2 / 3, 1 / 3], k)
        got = Integral(SAMPLING[rule], p, q, k).mean_accepted()
        assert got == pytest.approx(want, abs=1e-12)


@pytest.mark.parametrize(
    ("rule", "emitted"), [("token", [1.6, 1.96, 2.176]), ("block", [1.6, 2.03, 2.346])]
)
def test_mean_emitted_tokens_of_a_four_token_law(rule, emitted):
    for k, want in enumerate(emitted, 1):
        p, q = fixed_tables([0.1, 0.2, 0.3, 0.4], k + 1), fixed_tables([0.4, 0.3, 0.2, 0.1], k)
        got = 1 + Integral(SAMPLING[rule], p, q, k).mean_accepted()
        assert got == pytest.approx(want, abs=1e-12)


def pi_of(integral):
    """The product of ratios, capped at 1 in each step: ``[draft, slot]``."""
    index = integral.tokens.unsqueeze(-1)
    ratios = integral.p[:, :-1].gather(-1, index) / integral.q.gather(-1, index)
    pi, result = torch.ones(len(index), dtype=torch.float64), []
    for ratio in ratios.squeeze(-1).unbind(1):
        pi = (pi * ratio).clamp(max=1)
        result.append(pi)
    return torch.stack(result, 1)


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10_000), vocab=st.integers(2, 3), k=st.integers(1, 3))
def test_a_prefix_stands_with_probability_pi(seed, vocab, k):
    p, q = random_tables(k + 1, vocab, seed), random_tables(k, vocab, seed + 1)
    integral = Integral(verify_block, p, q, k)
    for i, pi in enumerate(pi_of(integral).unbind(1), 1):
        # Given the first i tokens: averaged over those that the draft draws after them.
        later = integral.weight.view(vocab**i, -1)
        stand = (integral.at_least(i).view(vocab**i, -1) * later).sum(1) / later.sum(1)
        torch.testing.assert_close(stand, pi.view(vocab**i, -1)[:, 0], atol=1e-12, rtol=0)


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10_000), vocab=st.integers(2, 3), k=st.integers(1, 3))
def test_the_block_rule_accepts_no_fewer_tokens_than_the_token_rule(seed, vocab, k):
    p, q = random_tables(k + 1, vocab, seed), random_tables(k, vocab, seed + 1)
    means = [Integral(rule, p, q, k).mean_accepted() for rule in (verify_tokens, verify_block)]
    assert means[1] >= means[0] - 1e-12


def random_block(n, k, vocab, *, seed=0, scale=1.0, dtype=torch.float32):
    """Logits of both, drafts from q, and noise."""
    rng = torch.Generator().manual_seed(seed)
    target = scale * torch.randn(n, k + 1, vocab, generator=rng, dtype=torch.float64)
    draft = target[:, :-1] + 0.7 * scale * torch.randn(
        n, k, vocab, generator=rng, dtype=torch.float64
    )
    tokens = torch.multinomial(draft.softmax(-1).flatten(0, 1), 1, generator=rng).view(n, k)
    noise = {
        "accept_uniforms": torch.rand(n, k, generator=rng, dtype=torch.float64),
        "emit_uniforms": torch.rand(n, k + 1, generator=rng, dtype=torch.float64),
    }
    return target.to(dtype), draft.to(dtype), tokens, noise


def test_both_rules_decide_alike_on_a_single_token():
    target, draft, tokens, noise = random_block(500, 1, 20)
    one, other = (rule(target, draft, tokens, **noise) for rule in SAMPLING.values())
    assert 0 < one.num_accepted.sum() < 500
    for a, b in zip(one, other, strict=True):
        assert torch.equal(a, b)


def test_both_rules_accept_equally_often_where_drafts_are_chosen_without_chance():
    p = random_tables(4, 3, 30)
    q = [torch.nn.functional.one_hot(t.argmax(-1), 3).double() for t in random_tables(3, 3, 31)]
    one, other = (Integral(rule, p, q, 3, one_hot=True) for rule in SAMPLING.values())
    for i in (1, 2, 3):
        torch.testing.assert_close(one.at_least(i), other.at_least(i), atol=1e-12, rtol=0)


@pytest.mark.parametrize("rule", SAMPLING)
def test_no_draft_logits_mean_one_hot_ones(rule):
    target, _, tokens, noise = random_block(300, 3, 12, dtype=torch.float64)
    one_hot = torch.nn.functional.one_hot(tokens, 12).double().log()
    implied = SAMPLING[rule](target, None, tokens, **noise)
    spelled = SAMPLING[rule](target, one_hot, tokens, **noise)
    assert torch.equal(implied.num_accepted, spelled.num_accepted)
    assert torch.equal(implied.next_tokens, spelled.next_tokens)
    torch.testing.assert_close(implied.overlap, spelled.overlap)


# Edges --------------------------------------------------------------------------------------------


def block(p, q, token, u, emit=0.5, drafted=1, rule="token"):
    return SAMPLING[rule](
        torch.tensor(p).log().expand(1, drafted + 1, -1),
        torch.tensor(q).log().expand(1, drafted, -1),
        torch.tensor([[token] * drafted]),
        accept_uniforms=torch.full((1, drafted), u, dtype=torch.float64),
        emit_uniforms=torch.full((1, drafted + 1), emit, dtype=torch.float64),
    )


@pytest.mark.parametrize("rule", SAMPLING)
def test_a_token_that_the_target_never_samples_falls_even_when_the_uniform_is_zero(rule):
    assert block([0.0, 1.0], [0.5, 0.5], token=0, u=0.0, rule=rule).num_accepted.item() == 0


@pytest.mark.parametrize("rule", SAMPLING)
def test_overlap_is_one_minus_total_variation(rule):
    overlap = block([0.55, 0.25, 0.15, 0.05], [0.25, 0.40, 0.10, 0.25], 0, 0.5, rule=rule).overlap
    assert overlap.item() == pytest.approx(0.65)


@pytest.mark.parametrize("rule", SAMPLING)
def test_equal_laws_accept_everything(rule):
    verdict = block([0.3, 0.7], [0.3, 0.7], token=1, u=ALMOST_ONE, drafted=4, rule=rule)
    assert verdict.num_accepted == 4


@pytest.mark.parametrize("rule", SAMPLING)
def test_disjoint_supports_accept_nothing_and_emit_from_the_target(rule):
    verdict = block([0.0, 0.5, 0.5], [1.0, 0.0, 0.0], token=0, u=0.0, emit=0.9, rule=rule)
    assert (verdict.num_accepted.item(), verdict.next_tokens.item()) == (0, 2)


@pytest.mark.parametrize("rule", SAMPLING)
def test_a_void_slot_ends_the_block_and_the_next_token_is_the_targets(rule):
    grid = (torch.arange(12, dtype=torch.float64) + 0.5) / 12
    verdict = SAMPLING[rule](
        torch.tensor([0.25, 0.75]).log().expand(12, 2, 2),
        torch.tensor([[[0.9, 0.1]]]).log().expand(12, 1, 2),
        torch.full((12, 1), -1),
        accept_uniforms=torch.zeros(12, 1, dtype=torch.float64),
        emit_uniforms=grid.view(-1, 1).expand(-1, 2),
    )
    assert verdict.num_accepted.sum() == 0
    assert verdict.next_tokens.bincount().tolist() == [3, 9]
    assert (verdict.overlap == 0).all()


@pytest.mark.parametrize("rule", SAMPLING)
def test_nothing_drafted_is_plain_sampling(rule):
    logits = torch.tensor([0.25, 0.75]).log().expand(2, 1, 2)
    emit = torch.tensor([[0.2], [0.3]], dtype=torch.float64)
    none = torch.zeros(2, 0, dtype=torch.float64)
    for draft_logits in (None, logits[:, :0]):
        verdict = SAMPLING[rule](
            logits, draft_logits, none.long(), accept_uniforms=none, emit_uniforms=emit
        )
        assert verdict.num_accepted.tolist() == [0, 0]
        assert verdict.next_tokens.tolist() == [0, 1]


@pytest.mark.parametrize("rule", SAMPLING)
def test_a_token_without_mass_in_the_draft_falls_and_the_next_is_the_targets(rule):
    """A drafter that reports another law than the one it drew from."""
    for emit, want in ((0.1, 0), (0.9, 1)):
        verdict = block([0.5, 0.5], [0.0, 1.0], token=0, u=0.0, emit=emit, rule=rule)
        assert (verdict.num_accepted.item(), verdict.next_tokens.item()) == (0, want)


@pytest.mark.parametrize("rule", SAMPLING)
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), "all -inf"])
def test_a_row_of_logits_that_is_no_law_is_marked_and_leaves_the_other_rows_alone(rule, bad):
    target, draft, tokens, noise = random_block(3, 2, 5)
    good = SAMPLING[rule](target, draft, tokens, **noise)
    target[1, 0, :] = -float("inf") if bad == "all -inf" else target[1, 0]
    if bad != "all -inf":
        target[1, 0, 3] = bad
    verdict = SAMPLING[rule](target, draft, tokens, **noise)
    assert (verdict.num_accepted[1].item(), verdict.next_tokens[1].item()) == (0, -1)
    assert torch.equal(verdict.next_tokens[[0, 2]], good.next_tokens[[0, 2]])
    assert verify_greedy(target, tokens).next_tokens[1].item() == -1


@pytest.mark.parametrize("rule", SAMPLING)
@pytest.mark.parametrize("u", [0.0, 0.5, ALMOST_ONE])
def test_laws_equal_up_to_rounding_give_tokens_of_the_target(rule, u):
    rng = torch.Generator().manual_seed(0)
    target = torch.randn(64, 4, 1000, generator=rng)
    target[:, :, ::2] = -float("inf")
    draft = target[:, :-1] * (1 + 1e-7 * torch.randn(64, 3, 1000, generator=rng))
    draft[:, :, ::2] = -float("inf")
    tokens = torch.randint(500, (64, 3), generator=rng) * 2 + 1
    verdict = SAMPLING[rule](
        target,
        draft,
        tokens,
        accept_uniforms=torch.full((64, 3), u, dtype=torch.float64),
        emit_uniforms=torch.rand(64, 4, generator=rng, dtype=torch.float64),
    )
    assert (verdict.next_tokens % 2 == 1).all()
    assert verdict.num_accepted.min() >= (3 if u < ALMOST_ONE else 0)


@pytest.mark.parametrize("rule", SAMPLING)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_logits_are_converted_before_anything_else(rule, dtype):
    target, draft, tokens, noise = random_block(50, 3, 300, dtype=dtype)
    half = SAMPLING[rule](target, draft, tokens, **noise)
    full = SAMPLING[rule](target.float(), draft.float(), tokens, **noise)
    for a, b in zip(half, full, strict=True):
        assert torch.equal(a, b)
    assert half.overlap.dtype == torch.float32


@pytest.mark.parametrize("rule", SAMPLING)
def test_single_precision_decides_as_double_does(rule):
    """Up to tests that fall within rounding of their threshold: 1e-5 of 20 000 uniforms."""
    single = SAMPLING[rule](*(block := random_block(5000, 4, 200, scale=3.0))[:3], **block[3])
    double = SAMPLING[rule](block[0].double(), block[1].double(), block[2], **block[3])
    assert (single.num_accepted != double.num_accepted).sum() <= 2
    assert (single.next_tokens != double.next_tokens).sum() <= 5
    torch.testing.assert_close(single.overlap.double(), double.overlap, atol=1e-5, rtol=0)


@pytest.mark.parametrize("rule", SAMPLING)
def test_a_row_is_verified_alike_alone_and_in_a_batch(rule):
    target, draft, tokens, noise = random_block(7, 3, 33)
    tokens[2, 1:] = -1
    together = SAMPLING[rule](target, draft, tokens, **noise)
    for row in range(7):
        part = slice(row, row + 1)
        alone = SAMPLING[rule](
            target[part], draft[part], tokens[part], **{k: u[part] for k, u in noise.items()}
        )
        for a, b in zip(alone, together, strict=True):
            assert torch.equal(a, b[part])


@pytest.mark.parametrize("rule", SAMPLING)
@pytest.mark.parametrize("one_hot", [False, True])
@pytest.mark.usefixtures("without_shape_checks")
def test_sampling_rules_compile_without_graph_breaks(rule, one_hot):
    target, draft, tokens, noise = random_block(5, 3, 11)
    draft = None if one_hot else draft
    compiled = torch.compile(SAMPLING[rule], fullgraph=True, backend="eager")
    for a, b in zip(
        compiled(target, draft, tokens, **noise),
        SAMPLING[rule](target, draft, tokens, **noise),
        strict=True,
    ):
        assert torch.equal(a, b)


@pytest.mark.usefixtures("without_shape_checks")
@pytest.mark.parametrize("rule", SAMPLING)
@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        (((2, 4, 5), (2, 3, 5), (2, 4)), r"draft_tokens must be \(2, 3\)"),
        (((2, 4, 5), (2, 3, 7), (2, 3)), r"target has 5 logits, the draft 7.*\[\.\.\., :5\]"),
        (((2, 4, 5), (1, 3, 5), (2, 3)), r"draft_logits has shape \(1, 3, 5\)"),
    ],
)
def test_shapes_that_do_not_belong_together_are_refused(rule, shapes, message):
    target, draft, tokens = (torch.zeros(shape) for shape in shapes)
    with pytest.raises(ValueError, match=message):
        SAMPLING[rule](
            target, draft, tokens.long(), accept_uniforms=tokens, emit_uniforms=target[..., 0]
        )


# The residual -------------------------------------------------------------------------------------


def test_residual_is_what_the_target_has_more_of():
    p, q = torch.tensor([0.1, 0.2, 0.3, 0.4]), torch.tensor([0.4, 0.3, 0.2, 0.1])
    torch.testing.assert_close(residual(p.log(), q.log()), torch.tensor([0, 0, 0.25, 0.75]))
    scaled = residual(p.log().expand(2, 4), q.log().expand(2, 4), scale=torch.tensor([1.0, 0.6]))
    torch.testing.assert_close(scaled[1], torch.tensor([0.0, 0, 0, 1]))
    assert torch.equal(residual(p.log(), p.log()), torch.softmax(p.log(), -1))


@pytest.mark.usefixtures("without_shape_checks")
def test_residual_of_different_shapes_is_refused():
    with pytest.raises(ValueError, match="must be equal"):
        residual(torch.zeros(3), torch.zeros(4))


# Greedy -------------------------------------------------------------------------------------------


def test_greedy_accepts_up_to_the_first_difference_and_corrects_it():
    logits = torch.nn.functional.one_hot(torch.tensor([[4, 2, 3, 1]]), 5).float()
    verdict = verify_greedy(logits, torch.tensor([[4, 2, 0]]))
    assert (verdict.num_accepted.item(), verdict.next_tokens.item()) == (2, 3)


def test_greedy_breaks_ties_towards_the_lowest_id():
    assert verify_greedy(torch.ones(1, 2, 400), torch.tensor([[1]])).next_tokens.item() == 0


# Coupled ------------------------------------------------------------------------------------------

P, Q = torch.tensor([0.55, 0.25, 0.15, 0.05]), torch.tensor([0.25, 0.40, 0.10, 0.25])


def test_coupled_output_is_plain_sampling_whatever_was_drafted():
    rng = torch.Generator().manual_seed(0)
    logits, n = torch.randn(200, 4, 10, generator=rng), 200
    noise = gumbel(torch.arange(n).unsqueeze(1), position=torch.arange(4), vocab_size=10)
    plain = (logits + noise).argmax(-1)
    drafts = {
        "random": torch.randint(10, (n, 3), generator=rng),
        "the same": plain[:, :3].clone(),
        "void": torch.full((n, 3), -1),
    }
    for name, tokens in drafts.items():
        verdict = verify_coupled(logits, tokens, gumbel=noise)
        for row, accepted in enumerate(verdict.num_accepted.tolist()):
            emitted = [*tokens[row, :accepted].tolist(), verdict.next_tokens[row].item()]
            assert emitted == plain[row, : accepted + 1].tolist(), name
    assert (verify_coupled(logits, drafts["the same"], gumbel=noise).num_accepted == 3).all()


def test_coupled_acceptance_is_the_closed_form():
    """0.61554 for these laws; 4 standard deviations of 200 000 draws, a false alarm in 16 000."""
    ratios = torch.maximum(P / P.unsqueeze(1), Q / Q.unsqueeze(1))
    want = (1 / ratios.sum(1)).sum().item()
    assert want == pytest.approx(0.61554, abs=5e-6)
    n = 200_000
    noise = gumbel(torch.arange(n), position=7, vocab_size=4)
    tokens = (Q.log() + noise).argmax(-1, keepdim=True)
    noise = torch.stack([noise, gumbel(torch.arange(n), position=8, vocab_size=4)], 1)
    verdict = verify_coupled(P.log().expand(n, 2, 4), tokens, gumbel=noise)
    accepted = verdict.num_accepted.double().mean().item()
    assert accepted == pytest.approx(want, abs=4 * math.sqrt(want * (1 - want) / n))
    first = torch.where(verdict.num_accepted > 0, tokens.squeeze(1), verdict.next_tokens)
    assert stats.chisquare(first.bincount().numpy(), (n * P).double().numpy()).pvalue > 1e-4


@pytest.mark.usefixtures("without_shape_checks")
def test_coupled_and_greedy_rules_compile_without_graph_breaks():
    target, _, tokens, _ = random_block(5, 3, 11)
    noise = gumbel(torch.arange(5).unsqueeze(1), position=torch.arange(4), vocab_size=11)
    compiled = torch.compile(verify_coupled, fullgraph=True, backend="eager")
    one, other = (f(target, tokens, gumbel=noise) for f in (compiled, verify_coupled))
    assert torch.equal(one.next_tokens, other.next_tokens)


@pytest.mark.usefixtures("without_shape_checks")
def test_noise_for_another_number_of_places_is_refused():
    with pytest.raises(ValueError, match="gumbel has shape"):
        verify_coupled(torch.zeros(1, 3, 4), torch.zeros(1, 2).long(), gumbel=torch.zeros(1, 2, 4))


# Several blocks: what fresh noise is for ----------------------------------------------------------


def chain(num_rows, num_blocks, keyed_by):
    """Decode context-free tokens in blocks of 3; return the emitted counts and their mean law."""
    p, q = torch.tensor([0.1, 0.2, 0.3, 0.4]), torch.tensor([0.4, 0.3, 0.2, 0.1])
    seeds = torch.arange(num_rows).unsqueeze(1)
    start, slots = torch.zeros(num_rows, 1, dtype=torch.long), torch.arange(4)
    counts, emitted = torch.zeros(4), 0
    for _ in range(num_blocks):
        place = {"position": start, "slot": slots}
        if keyed_by == "position":
            place = {"position": start + slots, "slot": 0}
        emit, accept, draft = (uniform(seeds, stream=s, **place) for s in range(3))
        tokens = torch.searchsorted(
            q.cumsum(0).double(), draft[:, :3].contiguous(), right=True
        ).clamp(max=3)
        verdict = verify_block(
            p.log().expand(num_rows, 4, 4),
            q.log().expand(num_rows, 3, 4),
            tokens,
            accept_uniforms=accept[:, :3],
            emit_uniforms=emit,
        )
        stays = slots[:3] < verdict.num_accepted.unsqueeze(1)
        kept = torch.cat([tokens[stays], verdict.next_tokens])
        counts += kept.bincount(minlength=4)
        emitted += len(kept)
        start = start + verdict.num_accepted.unsqueeze(1) + 1
    return counts / counts.sum(), emitted / (num_rows * num_blocks)


def test_block_verification_over_many_blocks_keeps_the_law_only_with_fresh_noise():
    """p = (.1, .2, .3, .4) and 2.346 tokens a block; noise keyed by position gives .1095 and 2.13.

    About 94 000 tokens: the error of each probability is below .002 (6 standard deviations .009).
    """
    want = torch.tensor([0.1, 0.2, 0.3, 0.4])
    law, emitted = chain(800, 50, "block")
    assert (law - want).abs().max() < 0.007
    assert emitted == pytest.approx(2.346, abs=0.03)
    law, emitted = chain(800, 50, "position")
    assert emitted < 2.25
