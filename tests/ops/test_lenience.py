"""Lossy rules: their laws by integration over all noise, their distortion, their limits."""

import pytest
import torch

from selftrain.ops import (
    Lenience,
    LeviathanLenience,
    MixtureLenience,
    TypicalAcceptance,
    output_law,
    verify_block,
    verify_greedy,
    verify_lenient,
    verify_tokens,
)

P, Q = [0.55, 0.25, 0.15, 0.05], [0.25, 0.40, 0.10, 0.25]
KINDS = ("linear", "square", "exponential")
LOSSLESS = [
    *(Lenience(kind=kind, epsilon=1.0, residual=r) for kind in KINDS for r in ("p-q", "p-lq")),
    LeviathanLenience(lenience=1.0),
    MixtureLenience(weight=0.0),
]
LOSSY = [
    *(Lenience(kind=kind, epsilon=0.6, residual=r) for kind in KINDS for r in ("p-q", "p-lq")),
    LeviathanLenience(lenience=0.4),
    MixtureLenience(weight=0.3),
    TypicalAcceptance(),
    TypicalAcceptance(epsilon=0.4, delta=0.9),
]


def law_at_one_position(p, q, lenience):
    """Return (acceptance, law of the output), found from decisions alone, by bisection on noise.

    For as many pairs of laws ``[law, vocab]`` as are given.
    """
    n, vocab = p.shape

    def decide(token, u, e):
        """Decide on tokens ``[law, trial]`` with noise of that shape."""
        trials = token.shape[1]
        return verify_lenient(
            p.log().view(n, 1, 1, vocab).expand(-1, trials, 2, -1).flatten(0, 1),
            q.log().view(n, 1, 1, vocab).expand(-1, trials, 1, -1).flatten(0, 1),
            token.reshape(-1, 1),
            lenience=lenience,
            accept_uniforms=u.reshape(-1, 1),
            emit_uniforms=e.reshape(-1, 1).expand(-1, 2),
        )

    every = torch.arange(vocab).expand(n, -1)
    half = torch.full((n, vocab), 0.5, dtype=torch.float64)
    stands = bisect(lambda u: decide(every, u, half).num_accepted.view(n, -1) == 1, (n, vocab))
    law = q * stands
    refused = 1 - law.sum(-1, keepdim=True)
    falls = (1 - stands).argmax(-1, keepdim=True).expand(-1, vocab - 1)
    late = torch.full(falls.shape, 1 - 2.0**-52, dtype=torch.float64)
    upto = torch.arange(vocab - 1)
    below = bisect(lambda e: decide(falls, late, e).next_tokens.view(n, -1) <= upto, (n, vocab - 1))
    edges = torch.nn.functional.pad(below, (1, 1))
    edges[:, -1] = 1
    return 1 - refused.squeeze(-1), law + refused * edges.diff(dim=-1)


def bisect(holds, shape):
    low, high = torch.zeros(shape, dtype=torch.float64), torch.ones(shape, dtype=torch.float64)
    for _ in range(45):
        middle = (low + high) / 2
        below = holds(middle)
        low, high = torch.where(below, middle, low), torch.where(below, high, middle)
    return (low + high) / 2


def total_variation(p, q):
    return (p - q).abs().sum(-1) / 2


def random_laws(n=100, vocab=5):
    rng = torch.Generator().manual_seed(0)
    weights = -torch.rand(2, n, vocab, generator=rng, dtype=torch.float64).log()
    return weights / weights.sum(-1, keepdim=True)


def example():
    return torch.tensor([P]).double(), torch.tensor([Q]).double()


def random_block(n, k, vocab, *, seed=0, dtype=torch.float64):
    rng = torch.Generator().manual_seed(seed)
    target = torch.randn(n, k + 1, vocab, generator=rng, dtype=torch.float64)
    draft = target[:, :-1] + 0.7 * torch.randn(n, k, vocab, generator=rng, dtype=torch.float64)
    tokens = torch.multinomial(draft.softmax(-1).flatten(0, 1), 1, generator=rng).view(n, k)
    tokens[: n // 5, k // 2 :] = -1
    noise = {
        "accept_uniforms": torch.rand(n, k, generator=rng, dtype=torch.float64),
        "emit_uniforms": torch.rand(n, k + 1, generator=rng, dtype=torch.float64),
    }
    return target.to(dtype), draft.to(dtype), tokens, noise


# The laws -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("lenience", "acceptance", "law", "distance"),
    [
        *((rule, 0.65, P, 0.0) for rule in LOSSLESS),
        (Lenience(epsilon=0.5), 0.85, [0.3786, 0.4, 0.1214, 0.1], 0.2),
        (Lenience(kind="square", epsilon=0.5), 0.95, [0.2929, 0.4, 0.1071, 0.2], 0.3),
        (Lenience(kind="exponential", epsilon=0.5), 0.9736, [0.2726, 0.4, 0.1038, 0.2236], 0.3236),
        *((Lenience(kind=kind, epsilon=0.2), 1.0, Q, 0.35) for kind in KINDS),
        (Lenience(epsilon=0.5, residual="p-lq"), 0.85, [0.3609, 0.4130, 0.1261, 0.1], 0.2130),
        (LeviathanLenience(lenience=0.5), 0.85, [0.3609, 0.4130, 0.1261, 0.1], 0.2130),
    ],
)
def test_a_worked_example_has_the_tabulated_law(lenience, acceptance, law, distance):
    p, q = example()
    accepted, output = law_at_one_position(p, q, lenience)
    assert accepted.item() == pytest.approx(acceptance, abs=5e-5)
    torch.testing.assert_close(output, torch.tensor([law]).double(), atol=5e-5, rtol=0)
    assert total_variation(output, p).item() == pytest.approx(distance, abs=5e-5)


@pytest.mark.parametrize("rule", LOSSY, ids=repr)
def test_reported_acceptance_and_distortion_are_those_of_the_law(rule):
    p, q = random_laws()
    accepted, law = law_at_one_position(p, q, rule)
    verdict = verify_lenient(
        p.log().unsqueeze(1).expand(-1, 2, -1),
        q.log().unsqueeze(1),
        torch.zeros(100, 1, dtype=torch.long),
        lenience=rule,
        accept_uniforms=torch.zeros(100, 1, dtype=torch.float64),
        emit_uniforms=torch.zeros(100, 2, dtype=torch.float64),
    )
    torch.testing.assert_close(verdict.overlap.squeeze(1), accepted, atol=1e-12, rtol=0)
    distance = total_variation(law, p)
    torch.testing.assert_close(verdict.distortion.squeeze(1), distance, atol=1e-12, rtol=0)
    stated = output_law(p.log(), q.log(), lenience=rule)
    torch.testing.assert_close(stated, law, atol=1e-12, rtol=0)
    # No rule accepts more than its distortion allows.
    assert (distance >= accepted - (1 - total_variation(p, q)) - 1e-12).all()


@pytest.mark.parametrize("weight", [0.01, 0.5, 0.99])
def test_a_mixture_accepts_more_by_exactly_the_budget_it_spends(weight):
    p, q = random_laws()
    tv = total_variation(p, q)
    accepted, law = law_at_one_position(p, q, MixtureLenience(weight=weight))
    torch.testing.assert_close(law, (1 - weight) * p + weight * q, atol=1e-12, rtol=0)
    torch.testing.assert_close(total_variation(law, p), weight * tv, atol=1e-12, rtol=0)
    torch.testing.assert_close(accepted, 1 - (1 - weight) * tv, atol=1e-12, rtol=0)


@pytest.mark.parametrize("epsilon", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("kind", KINDS)
def test_lenience_with_the_usual_residual_pays_no_more_than_it_must(kind, epsilon):
    """TV(out, p) = acceptance - (1 - TV(p, q)), the least possible, for every f >= p."""
    p, q = random_laws()
    accepted, law = law_at_one_position(p, q, Lenience(kind=kind, epsilon=epsilon))
    least = accepted - (1 - total_variation(p, q))
    torch.testing.assert_close(total_variation(law, p), least, atol=1e-12, rtol=0)


@pytest.mark.parametrize("epsilon", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("residual", ["p-q", "p-lq"])
def test_linear_lenience_makes_no_token_likelier_than_the_target_does_over_epsilon(
    epsilon, residual
):
    p, q = random_laws()
    _, law = law_at_one_position(p, q, Lenience(epsilon=epsilon, residual=residual))
    assert (law <= p / epsilon + 1e-12).all()


def test_typical_acceptance_draws_the_line_at_the_entropy():
    """H(P) = 1.1097: 0.3 exp(-H) = 0.0989 > 0.09, so tokens above 0.09 stand: all but the last."""
    p, q = example()
    accepted, law = law_at_one_position(p, q, TypicalAcceptance())
    assert accepted.item() == pytest.approx(0.75)
    want = torch.tensor([[0.5, 0.4, 0.1, 0.0]]).double()  # what falls becomes the likeliest token
    torch.testing.assert_close(law, want, atol=1e-7, rtol=0)
    accepted, _ = law_at_one_position(p, q, TypicalAcceptance(epsilon=0.5, delta=0.9))
    assert accepted.item() == pytest.approx(0.25)  # 0.9 exp(-H) = 0.297: only the first


# Limits -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", LOSSLESS, ids=repr)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("one_hot", [False, True])
def test_no_lenience_is_lossless_verification_bit_for_bit(rule, dtype, one_hot):
    target, draft, tokens, noise = random_block(400, 3, 50, dtype=dtype)
    draft = None if one_hot else draft
    plain = verify_tokens(target, draft, tokens, **noise)
    lenient = verify_lenient(target, draft, tokens, lenience=rule, **noise)
    assert rule.lossless
    assert torch.equal(plain.num_accepted, lenient.num_accepted)
    assert torch.equal(plain.next_tokens, lenient.next_tokens)
    torch.testing.assert_close(plain.overlap, lenient.overlap)
    assert lenient.distortion.max() < 1e-6


@pytest.mark.parametrize("rule", LOSSY, ids=repr)
def test_lossy_rules_accept_more_and_say_so(rule):
    target, draft, tokens, noise = random_block(2000, 3, 50)
    plain = verify_tokens(target, draft, tokens, **noise)
    lenient = verify_lenient(target, draft, tokens, lenience=rule, **noise)
    assert not rule.lossless
    if not isinstance(rule, TypicalAcceptance):
        assert (lenient.num_accepted >= plain.num_accepted).all()
        assert lenient.num_accepted.sum() > plain.num_accepted.sum()
    assert lenient.distortion[tokens >= 0].min() > 0
    assert (lenient.distortion[tokens < 0] == 0).all()
    assert (lenient.overlap[tokens < 0] == 0).all()


@pytest.mark.parametrize("rule", LOSSY, ids=repr)
def test_the_next_token_after_all_that_was_drafted_is_the_targets(rule):
    target, draft, tokens, noise = random_block(500, 3, 50)
    lenient = verify_lenient(target, draft, tokens, lenience=rule, **noise)
    full = lenient.num_accepted == (tokens >= 0).sum(1)
    assert 0 < full.sum() < 500
    nothing = torch.full_like(tokens, -1)
    for places in (1, 3):
        rows = full & (lenient.num_accepted == places)
        plain = verify_tokens(
            target[rows][:, places:],
            draft[rows][:, places:],
            nothing[rows][:, places:],
            accept_uniforms=noise["accept_uniforms"][rows][:, places:],
            emit_uniforms=noise["emit_uniforms"][rows][:, places:],
        )
        assert torch.equal(plain.next_tokens, lenient.next_tokens[rows])


def test_full_weight_and_vanishing_epsilon_accept_everything():
    target, draft, tokens, noise = random_block(200, 3, 50)
    for rule in (MixtureLenience(weight=1.0), Lenience(epsilon=1e-9)):
        verdict = verify_lenient(target, draft, tokens, lenience=rule, **noise)
        assert torch.equal(verdict.num_accepted, (tokens >= 0).sum(1))
    block = {"lenience": MixtureLenience(weight=1.0), "rule": "block"}
    verdict = verify_lenient(target, draft, tokens, **block, **noise)
    assert torch.equal(verdict.num_accepted, (tokens >= 0).sum(1))


# Mixtures by blocks -------------------------------------------------------------------------------


@pytest.mark.parametrize("weight", [0.0, 0.2, 0.7])
@pytest.mark.parametrize("one_hot", [False, True])
@pytest.mark.parametrize(("name", "plain"), [("token", verify_tokens), ("block", verify_block)])
def test_a_mixture_is_verified_like_any_law(weight, one_hot, name, plain):
    target, draft, tokens, noise = random_block(600, 4, 30)
    q = draft.softmax(-1)
    if one_hot:
        q = torch.nn.functional.one_hot(tokens.clamp(min=0), 30).double()
    mixed = target.softmax(-1)
    here = (tokens >= 0).unsqueeze(-1)
    mixed[:, :-1] = torch.where(here, (1 - weight) * mixed[:, :-1] + weight * q, mixed[:, :-1])
    want = plain(mixed.log(), None if one_hot else draft, tokens, **noise)
    got = verify_lenient(
        target,
        None if one_hot else draft,
        tokens,
        lenience=MixtureLenience(weight=weight),
        rule=name,
        **noise,
    )
    assert torch.equal(want.num_accepted, got.num_accepted)
    assert torch.equal(want.next_tokens, got.next_tokens)
    torch.testing.assert_close(got.overlap, want.overlap)


def test_blocks_accept_at_least_as_many_tokens_of_a_mixture():
    target, draft, tokens, noise = random_block(20_000, 4, 10)
    token, block = (
        verify_lenient(
            target, draft, tokens, lenience=MixtureLenience(weight=0.2), rule=rule, **noise
        ).num_accepted.sum()
        for rule in ("token", "block")
    )
    assert block > token


# Temperature 0 ------------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", LOSSLESS, ids=repr)
def test_no_lenience_is_greedy_verification_at_temperature_zero(rule):
    target, _, tokens, noise = random_block(300, 3, 6)
    target[:100] = target[:100].round()  # with ties
    tokens[::2] = torch.where(tokens[::2] >= 0, target[::2, :-1].argmax(-1), tokens[::2])
    plain = verify_greedy(target, tokens)
    lenient = verify_lenient(target, None, tokens, lenience=rule, greedy=True, **noise)
    for name in ("num_accepted", "next_tokens", "overlap"):
        assert torch.equal(getattr(plain, name), getattr(lenient, name).to(plain.overlap.dtype))
    assert lenient.distortion.max() == 0


@pytest.mark.parametrize(
    ("rule", "least"),
    [
        (Lenience(epsilon=0.4), 0.22),
        (LeviathanLenience(lenience=0.4), 0.22),
        (Lenience(kind="square", epsilon=0.5), 0.1375),
        (Lenience(kind="exponential", epsilon=0.4), 0.2244),  # .55 ** (1 / .4)
        (TypicalAcceptance(), 0.09),
    ],
)
def test_at_temperature_zero_likely_tokens_pass_for_the_likeliest(rule, least):
    verdict = verify_lenient(
        torch.tensor(P).log().expand(4, 2, 4),
        None,
        torch.arange(4).unsqueeze(1),
        lenience=rule,
        accept_uniforms=torch.zeros(4, 1, dtype=torch.float64),
        emit_uniforms=torch.zeros(4, 2, dtype=torch.float64),
        greedy=True,
    )
    stands = [p > least for p in P]
    assert verdict.num_accepted.bool().tolist() == stands
    assert verdict.next_tokens.tolist() == [0, 0, 0, 0]
    assert verdict.distortion.squeeze(1).tolist() == [0.0, *map(float, stands[1:])]


def test_at_temperature_zero_a_mixture_follows_the_draft_with_its_weight():
    grid = (torch.arange(10, dtype=torch.float64) + 0.5).unsqueeze(1) / 10
    verdict = verify_lenient(
        torch.tensor(P).log().expand(10, 2, 4),
        None,
        torch.full((10, 1), 2),
        lenience=MixtureLenience(weight=0.3),
        accept_uniforms=grid,
        emit_uniforms=grid.expand(10, 2),
        greedy=True,
    )
    assert verdict.num_accepted.sum() == 3
    torch.testing.assert_close(verdict.distortion, torch.full((10, 1), 0.3))


# Edges --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", LOSSY, ids=repr)
def test_banned_tokens_and_disjoint_laws_give_no_nan(rule):
    target, draft, tokens, noise = random_block(100, 2, 12)
    target[..., ::3] = -torch.inf
    draft[:50, :, 1::3] = -torch.inf
    draft[50:, :, 1:] = -torch.inf  # only token 0, which the target never samples
    tokens[50:] = 0
    verdict = verify_lenient(target, draft, tokens, lenience=rule, **noise)
    assert verdict.overlap.isfinite().all()
    assert verdict.distortion.isfinite().all()
    if not isinstance(rule, MixtureLenience):
        assert (verdict.num_accepted[50:] == 0).all()
        assert (verdict.next_tokens % 3 > 0).all()


@pytest.mark.parametrize("rule", LOSSY, ids=repr)
@pytest.mark.parametrize("greedy", [False, True])
def test_a_row_is_verified_alike_alone_and_in_a_batch(rule, greedy):
    target, draft, tokens, noise = random_block(6, 3, 33)
    together = verify_lenient(target, draft, tokens, lenience=rule, greedy=greedy, **noise)
    for row in range(6):
        part = slice(row, row + 1)
        alone = verify_lenient(
            target[part],
            draft[part],
            tokens[part],
            lenience=rule,
            greedy=greedy,
            **{k: u[part] for k, u in noise.items()},
        )
        for a, b in zip(alone, together, strict=True):
            assert torch.equal(a, b[part])


@pytest.mark.parametrize("rule", LOSSY, ids=repr)
@pytest.mark.parametrize("greedy", [False, True])
def test_logits_that_are_no_law_are_marked(rule, greedy):
    target, draft, tokens, noise = random_block(2, 2, 5)
    tokens[:] = 1
    target[1, 0, 3] = float("nan")
    verdict = verify_lenient(target, draft, tokens, lenience=rule, greedy=greedy, **noise)
    assert verdict.num_accepted[1].item() == 0
    assert verdict.next_tokens[1].item() == -1
    assert verdict.next_tokens[0].item() >= 0


@pytest.mark.parametrize("rule", LOSSY, ids=repr)
def test_nothing_drafted_is_plain_sampling(rule):
    emit = torch.tensor([[0.2], [0.3]], dtype=torch.float64)
    none = torch.zeros(2, 0, dtype=torch.float64)
    verdict = verify_lenient(
        torch.tensor([0.25, 0.75]).log().expand(2, 1, 2),
        None,
        none.long(),
        lenience=rule,
        accept_uniforms=none,
        emit_uniforms=emit,
    )
    assert verdict.next_tokens.tolist() == [0, 1]


@pytest.mark.parametrize("rule", LOSSY[5:9], ids=repr)
@pytest.mark.usefixtures("without_shape_checks")
def test_lossy_rules_compile_without_graph_breaks(rule):
    torch.compiler.reset()  # each rule is one more recompilation of the same function
    target, draft, tokens, noise = random_block(5, 3, 11)
    compiled = torch.compile(verify_lenient, fullgraph=True, backend="eager")
    for a, b in zip(
        compiled(target, draft, tokens, lenience=rule, **noise),
        verify_lenient(target, draft, tokens, lenience=rule, **noise),
        strict=True,
    ):
        assert torch.equal(a, b)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Lenience(epsilon=0.0), "epsilon must satisfy 0.0 < epsilon <= 1.0, got 0.0"),
        (lambda: Lenience(epsilon=1.5), "epsilon"),
        (lambda: Lenience(epsilon=0.5, kind="cubic"), "kind must be one of 'linear', 'square'"),
        (lambda: Lenience(epsilon=0.5, residual="p"), "residual must be one of 'p-q', 'p-lq'"),
        (lambda: LeviathanLenience(lenience=0.0), "lenience"),
        (lambda: MixtureLenience(weight=-0.1), "weight must satisfy 0.0 <= weight <= 1.0"),
        (lambda: TypicalAcceptance(epsilon=1.0), "epsilon"),
        (lambda: TypicalAcceptance(delta=0.0), "delta"),
    ],
)
@pytest.mark.usefixtures("without_shape_checks")
def test_parameters_out_of_range_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.usefixtures("without_shape_checks")
def test_only_a_mixture_can_be_verified_by_blocks():
    target, draft, tokens, noise = random_block(2, 2, 5)
    with pytest.raises(ValueError, match="which Lenience is not; use MixtureLenience"):
        verify_lenient(target, draft, tokens, lenience=Lenience(epsilon=0.5), rule="block", **noise)
    with pytest.raises(ValueError, match="rule must be one of 'token', 'block'"):
        verify_lenient(
            target, draft, tokens, lenience=Lenience(epsilon=0.5), rule="greedy", **noise
        )
