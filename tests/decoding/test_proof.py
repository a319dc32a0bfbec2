"""The proof kit itself: its integrals, its laws, its reach."""

import itertools
import math
from functools import partial

import numpy as np
import pytest
import torch
from scipy import stats

from selftrain.decoding.proof import (
    Drafting,
    Scenario,
    all_texts,
    block_outcomes,
    compare_counts,
    count_texts,
    default_scenarios,
    emitted_per_block,
    enumerate_block,
    enumerate_sequence,
    faults,
    fixed_model,
    foreign,
    injected_noise,
    prove,
    prove_coupled,
    random_model,
    sequence_law,
)
from selftrain.decoding.proof.integrate import integrate
from selftrain.ops import (
    MixtureLenience,
    Verdict,
    inverse_cdf,
    verify_block,
    verify_coupled,
    verify_greedy,
    verify_lenient,
    verify_tokens,
)

NOTHING = torch.zeros(1, 0, dtype=torch.long)


def few_scenarios():
    names = {"both without some tokens", "3 tokens, 2 drafted", "several blocks"}
    return [s for s in default_scenarios() if s.name in names]


# Tabular models -----------------------------------------------------------------------------------


def test_the_law_of_texts_is_the_product_of_the_laws_of_tokens():
    model = random_model(3, order=2, seed=5)
    law = sequence_law(model, 4)
    assert law.sum().item() == pytest.approx(1, abs=1e-14)
    for text in itertools.product(range(3), repeat=4):
        want = 1.0
        for i, token in enumerate(text):
            want *= model(torch.tensor([text[:i]], dtype=torch.long))[0, token].exp().item()
        assert law[text].item() == pytest.approx(want, rel=1e-12)


def test_a_model_sees_its_order_and_not_further():
    model = random_model(3, order=2, seed=0)
    longer, padded = torch.tensor([[0, 2, 1]]), torch.tensor([[-1, -1, 1]])
    assert torch.equal(model(longer), model(torch.tensor([[1, 2, 1]])))
    assert torch.equal(model(padded), model(torch.tensor([[1]])))
    assert not torch.equal(model(longer), model(torch.tensor([[0, 1, 1]])))


def test_random_models_have_the_zeros_and_the_support_asked_for():
    probs = random_model(4, order=4, zeros=0.5, seed=0).probs
    assert probs.sum(1).sub(1).abs().max() < 1e-14
    assert 0.3 < (probs == 0).double().mean() < 0.5  # the likeliest token always stays
    assert (random_model(4, support=(0, 2)).probs[:, [1, 3]] == 0).all()
    assert random_model(3, concentration=0.05).probs.amax(1).mean() > 0.85


# Integration --------------------------------------------------------------------------------------


def test_integration_finds_volumes_to_the_last_bit_even_where_cuts_depend_on_earlier_axes():
    h = torch.tensor([[0.1, 0.7, 1 / 3], [0.9999, 1e-9, 0.5]], dtype=torch.float64)

    def label(row, u):
        second = torch.where(u[:, 0] < h[row, 0], h[row, 1], h[row, 2])
        return 2 * (u[:, 0] < h[row, 0]).long() + (u[:, 1] < second).long()

    boxes = integrate(label, 2, 2)
    for row, (a, b, c) in enumerate(h.tolist()):
        for value, want in enumerate([(1 - a) * (1 - c), (1 - a) * c, a * (1 - b), a * b]):
            of = (boxes.row == row) & (boxes.label == value)
            assert boxes.volume[of].sum().item() == pytest.approx(want, abs=1e-15)


def test_integration_lists_what_only_a_uniform_of_zero_brings_about():
    boxes = integrate(lambda row, u: (u[:, 0] <= 0).long(), 1, 1)
    assert boxes.volume[boxes.label == 1].tolist() == [pytest.approx(0, abs=1e-15)]


@pytest.mark.parametrize(
    ("label", "message"),
    [
        (lambda row, u: (u.sum(1) > 1).long(), "not decided by comparing"),
        (lambda row, u: torch.randint(1 << 30, row.shape), "changes too often"),
    ],
)
def test_integration_refuses_what_it_cannot_integrate(label, message):
    with pytest.raises(ValueError, match=message):
        integrate(label, 1, 2)


# Enumeration --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("verifier", "want"),
    [(verify_tokens, (1.6, 1.96, 2.176)), (verify_block, (1.6, 2.03, 2.346))],
)
def test_emitted_tokens_per_block_are_those_of_the_papers_rules(verifier, want):
    """Enumerated independently, in rational arithmetic, for p = (.1, .2, .3, .4), q reversed."""
    p, q = fixed_model((0.1, 0.2, 0.3, 0.4)), fixed_model((0.4, 0.3, 0.2, 0.1))
    for k, mean in enumerate(want, 1):
        outcomes = block_outcomes(verifier, p, q, Drafting(num_draft_tokens=k), NOTHING)
        assert emitted_per_block(outcomes) == pytest.approx(mean, abs=1e-14)
        assert outcomes.probs.sum().item() == pytest.approx(1, abs=1e-14)


@pytest.mark.parametrize(
    ("lenience", "want"),
    [
        (lambda p: p / 0.5, (0.3786, 0.4000, 0.1214, 0.1000)),
        (lambda p: p / 0.25, (0.2929, 0.4000, 0.1071, 0.2000)),
        (lambda p: p**0.5, (0.2726, 0.4000, 0.1038, 0.2236)),
    ],
)
def test_the_law_of_a_lossy_rule_comes_out_as_it_is(lenience, want):
    """DistillSpec's lenience at 1/2, linear, square and exponential: closed forms."""

    def lenient(target_logits, draft_logits, tokens, *, accept_uniforms, emit_uniforms):
        p, q = target_logits.softmax(-1), draft_logits.softmax(-1)
        ratio = (lenience(p[:, :-1]) / q).gather(-1, tokens.unsqueeze(-1)).squeeze(-1)
        accepted = (accept_uniforms < ratio).long().cumprod(1).sum(1)
        residual = (p[:, 0] - q[:, 0]).clamp(min=0)
        weights = torch.where(accepted.unsqueeze(1) > 0, p[:, 1], residual)
        return Verdict(accepted, inverse_cdf(weights, emit_uniforms[:, 0]), ratio)

    p, q = fixed_model((0.55, 0.25, 0.15, 0.05)), fixed_model((0.25, 0.40, 0.10, 0.25))
    law = enumerate_block(lenient, p, q, 1).sum(1)
    torch.testing.assert_close(law, torch.tensor(want).double(), atol=5e-5, rtol=0)


def test_a_mixture_of_both_models_comes_out_as_the_mixture():
    p, q = random_model(3, order=0, seed=1), random_model(3, order=0, seed=2)
    law = enumerate_block(partial(verify_lenient, lenience=MixtureLenience(weight=0.3)), p, q, 2)
    first = 0.7 * p.probs[0] + 0.3 * q.probs[0]
    torch.testing.assert_close(law.sum((1, 2)), first, atol=1e-14, rtol=0)


def test_the_law_of_several_blocks_is_that_of_one_if_they_are_exact_and_not_if_they_are_not():
    p, q = random_model(2, seed=7), random_model(2, seed=8)
    exact = enumerate_sequence(verify_block, p, q, 2, num_tokens=5)
    torch.testing.assert_close(exact, sequence_law(p, 5), atol=1e-14, rtol=0)
    wrong = faults()["resampling from the target"].verifier
    one = enumerate_block(wrong, p, q, 2)
    many = enumerate_sequence(wrong, p, q, 2, num_tokens=3)
    assert one.sum((1, 2)).sub(many.sum((1, 2))).abs().max() < 1e-14  # the first token
    assert one.sub(many).abs().max() > 0.01


def test_nothing_drafted_is_plain_sampling():
    p = random_model(3, seed=1)
    for verifier in (verify_tokens, verify_block):
        law = enumerate_sequence(verifier, p, p, 0, num_tokens=3)
        torch.testing.assert_close(law, sequence_law(p, 3), atol=1e-15, rtol=0)


@pytest.mark.parametrize(("accepted", "following"), [(3, 0), (0, -1)])
def test_a_verifier_that_emits_no_block_is_refused(accepted, following):
    def absurd(target_logits, draft_logits, tokens, **noise):
        n = len(tokens)
        return Verdict(torch.full((n,), accepted), torch.full((n,), following), noise)

    p = random_model(2, seed=1)
    with pytest.raises(ValueError, match="emits no token, or accepts more"):
        enumerate_block(absurd, p, p, 2)


# Proofs -------------------------------------------------------------------------------------------


def textbook_token_rule(target_logits, draft_logits, tokens, *, accept_uniforms, emit_uniforms):
    """Leviathan et al., algorithm 1, as it is printed: one row, one token at a time."""
    accepted, following = [], []
    for row in range(len(tokens)):
        p, q = target_logits[row].exp(), draft_logits[row].exp()
        drafted, n = int((tokens[row] >= 0).sum()), 0
        while n < drafted and accept_uniforms[row, n] * q[n, tokens[row, n]] < p[n, tokens[row, n]]:
            n += 1
        weights = p[n] if n == drafted else (p[n] - q[n]).clamp(min=0)
        accepted.append(n)
        following.append(inverse_cdf(weights, emit_uniforms[row, n]).item())
    return Verdict(torch.tensor(accepted), torch.tensor(following), accept_uniforms)


def textbook_block_rule(target_logits, draft_logits, tokens, *, accept_uniforms, emit_uniforms):
    """Sun et al., algorithm 2, as it is printed: one row, one prefix at a time."""
    accepted, following = [], []
    for row in range(len(tokens)):
        p, q = target_logits[row].exp(), draft_logits[row].exp()
        drafted, pi, tau, weights = int((tokens[row] >= 0).sum()), 1.0, 0, None
        for i in range(drafted + 1):
            if i:
                pi = min(1.0, pi * (p[i - 1, tokens[row, i - 1]] / q[i - 1, tokens[row, i - 1]]))
            rest = p[i] if i == drafted else (pi * p[i] - q[i]).clamp(min=0)
            mass = float(rest.sum())
            h = pi if i == drafted else (1.0 if mass + 1 - pi == 0 else mass / (mass + 1 - pi))
            if i == 0 or accept_uniforms[row, i - 1] < h:
                tau, weights = i, rest if mass > 0 else p[i]
        accepted.append(tau)
        following.append(inverse_cdf(weights, emit_uniforms[row, tau]).item())
    return Verdict(torch.tensor(accepted), torch.tensor(following), accept_uniforms)


def greedy(target_logits, draft_logits, tokens, **noise):
    return verify_greedy(target_logits, tokens)


@pytest.mark.parametrize("verifier", [verify_tokens, verify_block])
def test_sampling_verifiers_are_exact_in_every_scenario(verifier):
    proof = prove(verifier)
    assert proof.passed, str(proof)
    assert len(proof.cases) == 20


@pytest.mark.parametrize("verifier", [textbook_token_rule, textbook_block_rule])
def test_the_rules_as_printed_are_exact_too(verifier):
    proof = prove(verifier, scenarios=few_scenarios()[:1])
    assert proof.passed, str(proof)


@pytest.mark.parametrize(
    ("ours", "printed"), [(verify_tokens, textbook_token_rule), (verify_block, textbook_block_rule)]
)
def test_our_rules_emit_what_the_printed_ones_do(ours, printed):
    rng = torch.Generator().manual_seed(0)
    texts = torch.randint(3, (400, 3), generator=rng)
    p, q = random_model(3, seed=3, zeros=0.2), random_model(3, seed=4)
    target = torch.stack([p(texts[:, :i]) for i in range(4)], 1)
    draft = torch.stack([q(texts[:, :i]) for i in range(3)], 1)
    noise = {
        "accept_uniforms": torch.rand(400, 3, generator=rng, dtype=torch.float64),
        "emit_uniforms": torch.rand(400, 4, generator=rng, dtype=torch.float64),
    }
    texts[:100, 2] = -1
    one, other = (rule(target, draft, texts, **noise) for rule in (ours, printed))
    assert torch.equal(one.num_accepted, other.num_accepted)
    assert torch.equal(one.next_tokens, other.next_tokens)


def test_greedy_and_coupled_verifiers_are_exact_in_every_scenario():
    proof = prove(greedy, scenarios=default_scenarios(temperature=0.0))
    assert proof.passed, str(proof)
    proof = prove_coupled(verify_coupled)
    assert proof.passed, str(proof)


def test_a_greedy_verifier_does_not_sample_and_a_coupled_one_needs_its_noise():
    assert not prove(greedy, scenarios=few_scenarios()).passed

    def other_noise(target_logits, tokens, *, gumbel):
        return verify_coupled(target_logits, tokens, gumbel=gumbel.roll(1, 1))

    assert len(prove_coupled(other_noise, scenarios=few_scenarios()).failures) == 3


@pytest.mark.parametrize("name", faults())
def test_every_fault_is_detected(name):
    fault = faults()[name]
    proof = prove(fault.verifier, scenarios=fault.scenarios)
    assert not proof.passed
    assert all("Error" not in case.problem for case in proof.cases), str(proof)


def test_accepting_at_equality_shows_in_no_probability_and_is_detected_all_the_same():
    fault = faults()["u <= p/q"]
    proof = prove(fault.verifier, scenarios=fault.scenarios)
    assert max(case.deviation for case in proof.cases) < 1e-12
    assert [case.problem for case in proof.failures] == [
        "some noise brings out what the target never emits"
    ]


def test_a_draft_may_stop_where_it_likes_but_not_take_back_what_it_drew():
    p, q = random_model(3, seed=20), random_model(3, seed=21)

    def unlikely(texts):
        return q(texts[:, :-1]).gather(1, texts[:, -1:]).squeeze(1) < math.log(0.3)

    law = enumerate_block(verify_block, p, q, 3, stops=unlikely)
    torch.testing.assert_close(law, sequence_law(p, 4), atol=1e-14, rtol=0)
    dropped = enumerate_block(faults()["unlikely token dropped"].verifier, p, q, 3)
    assert 0.02 < (dropped - sequence_law(p, 4)).abs().sum() / 2 < 0.3


def test_a_case_that_raises_fails_and_says_what_was_raised():
    def broken(*args, **noise):
        raise NotImplementedError("no batches")

    proof = prove(broken, scenarios=few_scenarios())
    assert [case.problem for case in proof.failures] == ["NotImplementedError: no batches"] * 3
    assert "FAILS" in str(proof)


# Foreign verifiers --------------------------------------------------------------------------------


def drawing(compare=torch.lt):
    """A verifier that draws its own noise, one block at a time."""

    def sample(target_logits, draft_logits, tokens):
        p, q = target_logits.softmax(-1), draft_logits.softmax(-1)
        at = tokens.unsqueeze(-1)
        ratio = (p[:, :-1].gather(-1, at) / q.gather(-1, at)).squeeze(-1)
        stands = compare(torch.rand_like(ratio), ratio)
        n = int(stands.long().cumprod(1).sum())
        weights = p[:, n] if n == tokens.shape[1] else (p[:, n] - q[:, n]).clamp(min=0)
        return torch.cat([tokens[:, :n], torch.multinomial(weights, 1)], 1)

    return sample


def test_a_foreign_verifier_is_proved_as_a_black_box():
    names = {"2 tokens, 1 drafted", "no token in common", "draft chosen without chance"}
    scenarios = [s for s in default_scenarios() if s.name in names]
    proof = prove(foreign(drawing()), scenarios=scenarios)
    assert proof.passed, str(proof)
    proof = prove(foreign(drawing(torch.le)), scenarios=scenarios)
    assert [case.name for case in proof.failures] == ["no token in common"]


def test_a_foreign_verifier_in_single_precision_is_right_to_1e_7():
    def single(target_logits, draft_logits, tokens):
        return drawing()(target_logits.float(), draft_logits.float(), tokens)

    scenarios = [
        Scenario(
            "3", random_model(3, seed=1), random_model(3, seed=2), Drafting(num_draft_tokens=1)
        )
    ]
    (case,) = prove(foreign(single), scenarios=scenarios, tolerance=1e-6).cases
    assert case.passed
    assert 1e-10 < case.deviation < 3e-7


def test_tokens_that_were_not_drafted_are_not_accepted_ones():
    verifier = foreign(lambda target, draft, tokens: torch.cat([1 - tokens, tokens], 1))
    p = random_model(2, seed=1)
    with pytest.raises(ValueError, match="beginning of the draft"):
        enumerate_block(verifier, p, p, 1)


def test_injected_noise_is_what_torch_draws_and_goes_away_after():
    before = torch.rand, torch.rand_like, torch.multinomial, torch.Tensor.uniform_
    with injected_noise([0.1, 0.2, 0.3], 0.7):
        assert torch.rand(2, dtype=torch.float64).tolist() == [0.1, 0.2]
        assert torch.empty(1).uniform_().item() == pytest.approx(0.3)
        assert torch.multinomial(torch.tensor([[0.6, 0.2, 0.2]]), 1).tolist() == [[1]]
        with pytest.raises(RuntimeError, match="no positive number"):
            torch.multinomial(torch.zeros(1, 3), 1)
        with pytest.raises(RuntimeError, match="more uniforms"):
            torch.rand(5)
    assert before == (torch.rand, torch.rand_like, torch.multinomial, torch.Tensor.uniform_)
    with injected_noise([1 - 2.0**-52], 0.0):
        assert torch.rand(1).item() == 1 - 2.0**-24  # torch.rand never returns 1


def test_noise_that_cannot_be_injected_is_noticed():
    with pytest.raises(RuntimeError, match="other means"), injected_noise([0.5], 0.5):
        torch.randn(1)


# Goodness of fit ----------------------------------------------------------------------------------


def test_the_g_test_is_scipys():
    rng = np.random.default_rng(0)
    law = rng.dirichlet(np.ones(12))
    counts = rng.multinomial(4000, law)
    ours = compare_counts(torch.tensor(counts).view(3, 4), torch.tensor(law).view(3, 4))
    few = 4000 * law < 5
    pooled = [np.append(x[~few], x[few].sum()) for x in (counts, 4000 * law)]
    pooled = [x[pooled[1] > 0] for x in pooled]
    theirs = stats.power_divergence(*pooled, lambda_="log-likelihood")
    assert ours.statistic == pytest.approx(theirs.statistic)
    assert ours.p_value == pytest.approx(theirs.pvalue)
    assert ours.total_variation == pytest.approx(np.abs(counts / 4000 - law).sum() / 2)


def test_sigmas_are_those_of_the_p_value_and_no_more_where_that_is_too_small_for_a_float():
    half = torch.tensor([0.5, 0.5], dtype=torch.float64)
    for n, sigmas in ((10_000, 2.0), (10_000, 8.0), (10**8, 60.0)):
        # Two cells: z deviates by (observed - expected) / sqrt(n / 4); the test has two sides.
        shift = sigmas * math.sqrt(n) / 2
        test = compare_counts(torch.tensor([n / 2 + shift, n / 2 - shift]), half)
        two_sided = stats.norm.isf(2 * stats.norm.sf(sigmas)) if sigmas < 30 else sigmas
        assert test.sigmas <= two_sided + 0.05
        assert test.sigmas >= (two_sided - 0.05 if sigmas < 30 else 20)


def test_what_cannot_happen_is_infinitely_far_out():
    test = compare_counts(torch.tensor([50.0, 50, 1]), torch.tensor([0.5, 0.5, 0.0]))
    assert (test.p_value, test.sigmas) == (0.0, math.inf)
    with pytest.raises(ValueError, match="must be equal"):
        compare_counts(torch.ones(2), torch.ones(3))
    with pytest.raises(ValueError, match="too few"):
        compare_counts(torch.ones(2), torch.ones(2))


def test_texts_are_counted_in_the_order_in_which_they_are_listed():
    texts = all_texts(3, 2)
    counts = count_texts(texts.repeat_interleave(torch.arange(9), 0), 3)
    assert counts.flatten().tolist() == list(range(9))
