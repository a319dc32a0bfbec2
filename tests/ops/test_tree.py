"""Multi-draft verification is exact: complete enumeration with exact integration over the noise.

Laws are multiples of 1/4 held as fractions, so that every threshold of every uniform is known
exactly. Between neighbouring thresholds the outcome is constant: one point stands for all.
"""

import itertools
from fractions import Fraction

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from selftrain.ops.tree import (
    ancestor_mask,
    inner_nodes,
    node_depths,
    verify_tree,
    verify_tree_greedy,
)
from selftrain.ops.verify import verify_greedy, verify_tokens

P = [Fraction(n, 10) for n in (1, 2, 3, 4)]
Q = P[::-1]
SAMPLINGS = ("independent", "without_replacement", "top_k")


def random_law(vocab, rng):
    draws = torch.randint(vocab, (4,), generator=rng).bincount(minlength=vocab)
    return [Fraction(n, 4) for n in draws.tolist()]


def normalised(weights):
    total = sum(weights)
    return [w / total for w in weights] if total else None


def without(law, token):
    return normalised([Fraction(0) if v == token else w for v, w in enumerate(law)])


def sibling_laws(q, tokens, sampling):
    """The law that each sibling was drawn from, given those before it; None if there is none."""
    for token in tokens:
        if q is None:
            yield None
        elif sampling == "top_k":
            yield [Fraction(int(v == token)) for v in range(len(q))]
        else:
            yield q
            q = without(q, token) if sampling == "without_replacement" else q


def thresholds(p, q, tokens, sampling):
    """Each sibling's chance to stand once tested, and the law left if all fall."""
    left = p
    for token, law in zip(tokens, sibling_laws(q, tokens, sampling), strict=True):
        if left is None or token < 0 or law is None or not law[token]:
            yield Fraction(0), left
            continue
        stands = min(Fraction(1), left[token] / law[token])
        left = normalised([max(Fraction(0), a - b) for a, b in zip(left, law, strict=True)])
        yield stands, left


def cells(points):
    """Midpoints and widths of the intervals that ``points`` cut [0, 1) into."""
    edges = sorted({Fraction(0), Fraction(1), *points})
    return [((a + b) / 2, b - a) for a, b in itertools.pairwise(edges)]


class Case:
    """A tree over laws that depend on the whole prefix; ``p`` and ``q`` map prefixes to laws."""

    def __init__(self, parents, vocab, sampling, seed, verified_as=None):
        rng = torch.Generator().manual_seed(seed)
        self.parents, self.vocab, self.sampling = parents, vocab, sampling
        self.verified_as = verified_as or sampling
        self.depth = max(node_depths(parents))
        prefixes = [
            prefix
            for length in range(self.depth + 1)
            for prefix in itertools.product(range(vocab), repeat=length)
        ]
        self.p = {prefix: random_law(vocab, rng) for prefix in prefixes}
        self.q = {prefix: random_law(vocab, rng) for prefix in prefixes}

    def children(self, node):
        return [j for j, parent in enumerate(self.parents) if parent == node]

    def prefix(self, tokens, node):
        return () if node < 0 else (*self.prefix(tokens, self.parents[node]), tokens[node])

    def drafts(self, tokens=(), weight=Fraction(1)):
        """Every assignment of tokens to the nodes, with its probability."""
        node = len(tokens)
        if node == len(self.parents):
            yield tokens, weight
            return
        parent = self.parents[node]
        law = None
        if parent < 0 or tokens[parent] >= 0:
            law = self.q[self.prefix(tokens, parent)]
            older = [tokens[j] for j in self.children(parent) if j < node]
            if self.sampling == "top_k":  # the most likely ones, whatever their probability
                order = sorted(range(self.vocab), key=lambda v: (-law[v], v))
                token = order[len(older)] if len(older) < self.vocab else -1
                yield from self.drafts((*tokens, token), weight)
                return
            if self.sampling == "without_replacement":
                for token in older:
                    law = law and without(law, token)
        if law is None:
            yield from self.drafts((*tokens, -1), weight)
            return
        for token, chance in enumerate(law):
            if chance:
                yield from self.drafts((*tokens, token), weight * chance)

    def logits(self, laws, tokens, nodes):
        uniform = [Fraction(1, self.vocab)] * self.vocab
        rows = []
        for node in nodes:
            prefix = self.prefix(tokens, node)
            rows.append(uniform if -1 in prefix else laws[prefix])
        return torch.tensor([[float(x) for x in row] for row in rows], dtype=torch.float64).log()

    def noise(self, tokens):
        """All cells of the uniforms: a midpoint for every node and the emission, and a volume."""
        accept, emit = [None] * len(self.parents), set()
        for node in range(-1, len(self.parents)):
            prefix = self.prefix(tokens, node)
            if -1 in prefix:
                continue
            children, left = self.children(node), self.p[prefix]
            drawn = [tokens[j] for j in children]
            for child, (stands, after) in zip(
                children, thresholds(left, self.q[prefix], drawn, self.verified_as), strict=True
            ):
                accept[child], left = stands, after
            if left is not None:
                emit |= set(itertools.accumulate(left))
        axes = [cells([a or Fraction(0)]) for a in accept] + [cells(emit)]
        for combination in itertools.product(*axes):
            volume = Fraction(1)
            for _, width in combination:
                volume *= width
            yield [float(middle) for middle, _ in combination], float(volume)

    def output_law(self):
        """The law of the first ``depth + 1`` tokens, completed by the target after the block."""
        law = torch.zeros([self.vocab] * (self.depth + 1), dtype=torch.float64)
        for tokens, weight in self.drafts():
            points, volumes = zip(*self.noise(tokens), strict=True)
            noise = torch.tensor(points, dtype=torch.float64)
            n = len(noise)
            q = None
            if self.verified_as != "top_k":
                q = self.logits(self.q, tokens, inner_nodes(self.parents)).expand(n, -1, -1)
            verdict = verify_tree(
                self.logits(self.p, tokens, range(-1, len(tokens))).expand(n, -1, -1),
                q,
                torch.tensor(tokens).expand(n, -1),
                self.parents,
                accept_uniforms=noise[:, :-1],
                emit_uniforms=noise[:, -1:].expand(-1, self.depth + 1),
                sampling=self.verified_as,
            )
            ends = zip(verdict.path.tolist(), verdict.next_tokens.tolist(), volumes, strict=True)
            for path, token, volume in ends:
                output = (*(tokens[j] for j in path if j >= 0), token)
                law[output] += float(weight) * volume * self.completion(output)
        return law

    def completion(self, prefix):
        if len(prefix) > self.depth:
            return torch.ones((), dtype=torch.float64)
        law = self.p[prefix]
        tails = [float(w) * self.completion((*prefix, v)) for v, w in enumerate(law)]
        return torch.stack(tails)


TREES = {
    "one": (-1,),
    "three children": (-1, -1, -1),
    "two levels": (-1, -1, 0, 0, 1),
    "children out of order": (-1, 0, -1, 2, 0),
    "a branch below": (-1, 0, 1, 1),
}


@pytest.mark.parametrize("sampling", SAMPLINGS)
@pytest.mark.parametrize(("vocab", "seed"), [(2, 0), (2, 1), (3, 2), (3, 3)])
@pytest.mark.parametrize("parents", TREES.values(), ids=TREES)
def test_output_law_is_the_targets_by_enumeration(parents, vocab, seed, sampling):
    """At vocab 2 the trees have more children than tokens too."""
    case = Case(parents, vocab, sampling, seed)
    torch.testing.assert_close(case.output_law(), case.completion(()), atol=1e-12, rtol=0)


@pytest.mark.parametrize(
    ("drawn", "verified_as", "exact"),
    [
        ("without_replacement", "independent", False),
        # Independent draws but for repetitions, which that rule passes over, are of its law.
        ("independent", "without_replacement", True),
        ("without_replacement", "top_k", True),  # that rule does not care where tokens come from
    ],
)
def test_enumeration_tells_which_rules_fit_which_draws(drawn, verified_as, exact):
    case = Case((-1, -1), 4, drawn, seed=1, verified_as=verified_as)
    case.p[()], case.q[()] = P, Q
    error = (case.output_law() - case.completion(())).abs().max()
    assert error < 1e-12 if exact else error > 0.005


ORACLE = {
    "independent": (0.6, 0.72, 0.768),
    "without_replacement": (0.6, 107 / 140, 0.8403),
    "top_k": (0.1, 0.3, 0.6),
}


@pytest.mark.parametrize("sampling", SAMPLINGS)
@pytest.mark.parametrize("width", [1, 2, 3])
def test_acceptance_of_several_drafts_is_the_known_one(sampling, width):
    """p = (.1, .2, .3, .4), q reversed; also: tested nodes stand as often as ``overlap`` says."""
    case = Case((-1,) * width, 4, sampling, seed=0)
    case.p[()], case.q[()] = P, Q
    accepted = expected = 0.0
    for tokens, weight in case.drafts():
        points, volumes = zip(*case.noise(tokens), strict=True)
        noise, volume = (torch.tensor(x, dtype=torch.float64) for x in (points, volumes))
        n = len(noise)
        law = case.logits(case.q, tokens, [-1]).expand(n, -1, -1)
        verdict = verify_tree(
            case.logits(case.p, tokens, range(-1, width)).expand(n, -1, -1),
            None if sampling == "top_k" else law,
            torch.tensor(tokens).expand(n, -1),
            case.parents,
            accept_uniforms=noise[:, :-1],
            emit_uniforms=noise[:, -1:].expand(-1, 2),
            sampling=sampling,
        )
        accepted += float(weight) * float((verdict.num_accepted * volume).sum())
        expected += float(weight) * float((verdict.overlap.sum(1) * volume).sum())
        assert torch.equal(verdict.overlap > 0, verdict.tested)
    assert accepted == pytest.approx(ORACLE[sampling][width - 1], abs=5e-5)
    assert expected == pytest.approx(accepted, abs=1e-12)


def block(batch, drafted, vocab, seed):
    rng = torch.Generator().manual_seed(seed)
    logits = [torch.randn(batch, n, vocab, generator=rng) * 2 for n in (drafted + 1, drafted)]
    tokens = torch.randint(-1, vocab, (batch, drafted), generator=rng)
    noise = [torch.rand(batch, n, generator=rng).double() for n in (drafted, drafted + 1)]
    return *logits, tokens, *noise


@given(drafted=st.integers(1, 5), vocab=st.sampled_from([1, 2, 7, 33]), seed=st.integers(0, 99))
def test_a_tree_without_branches_is_verified_as_a_chain_bit_for_bit(drafted, vocab, seed):
    p, q, tokens, accept, emit = block(16, drafted, vocab, seed)
    chain = tuple(range(-1, drafted - 1))
    noise = {"accept_uniforms": accept, "emit_uniforms": emit}
    want = verify_tokens(p, q, tokens, **noise)
    for sampling in ("independent", "without_replacement"):
        got = verify_tree(p, q, tokens, chain, sampling=sampling, **noise)
        assert torch.equal(got.num_accepted, want.num_accepted)
        assert torch.equal(got.next_tokens, want.next_tokens)
        assert torch.equal(got.overlap, want.overlap * got.tested)
        nodes = torch.arange(drafted).expand(16, -1)
        stands = nodes < want.num_accepted.unsqueeze(1)
        assert torch.equal(got.path, torch.where(stands, nodes, -1))
    want = verify_greedy(p, tokens)
    got = verify_tree_greedy(p, tokens, chain)
    assert torch.equal(got.num_accepted, want.num_accepted)
    assert torch.equal(got.next_tokens, want.next_tokens)


def test_determined_children_stand_as_often_as_a_draw_of_the_target_hits_one():
    """The equivalent rule: draw z from p and descend if z is a child. Two levels of two."""
    parents, vocab, n = (-1, -1, 0, 0, 1, 1), 5, 40_000
    rng = torch.Generator().manual_seed(3)
    logits = torch.randn(1, 7, vocab, generator=rng).double()
    tokens = torch.tensor([[4, 1, 0, 2, 3, 0]])
    verdict = verify_tree(
        logits.expand(n, -1, -1),
        None,
        tokens.expand(n, -1),
        parents,
        accept_uniforms=torch.rand(n, 6, generator=rng, dtype=torch.float64),
        emit_uniforms=torch.rand(n, 3, generator=rng, dtype=torch.float64),
        sampling="top_k",
    )
    p = logits.softmax(-1)[0]
    first = p[0, 4] + p[0, 1]
    both = p[0, 4] * (p[1, 0] + p[1, 2]) + p[0, 1] * (p[2, 3] + p[2, 0])
    share = torch.stack([(verdict.num_accepted >= k).double().mean() for k in (1, 2)])
    want = torch.stack([first, both])
    assert ((share - want).abs() < 4 * (want * (1 - want) / n).sqrt()).all()


def test_rows_do_not_depend_on_their_batch():
    parents = (-1, -1, 0, 0, 1, 3)
    rng = torch.Generator().manual_seed(0)
    p, q = torch.randn(9, 7, 6, generator=rng), torch.randn(9, 4, 6, generator=rng)
    tokens = torch.randint(-1, 6, (9, 6), generator=rng)
    accept = torch.rand(9, 6, generator=rng, dtype=torch.float64)
    emit = torch.rand(9, 4, generator=rng, dtype=torch.float64)
    together = verify_tree(p, q, tokens, parents, accept_uniforms=accept, emit_uniforms=emit)
    for i in range(9):
        row = slice(i, i + 1)
        alone = verify_tree(
            p[row],
            q[row],
            tokens[row],
            parents,
            accept_uniforms=accept[row],
            emit_uniforms=emit[row],
        )
        for a, b in zip(alone, together, strict=True):
            assert torch.equal(a[0], b[i])


def test_greedy_descends_along_the_most_likely_tokens():
    best = torch.tensor([[4, 0, 2, 3, 1, 3]])
    logits = torch.nn.functional.one_hot(best, 5).float()
    verdict = verify_tree_greedy(logits, torch.tensor([[1, 4, 2, 0, 2]]), (-1, -1, 1, 1, 2))
    assert verdict.path.tolist() == [[1, 2, -1]]
    assert verdict.next_tokens.item() == 3
    assert verdict.tested.tolist() == [[True, True, True, False, True]]


def test_a_token_that_the_target_never_samples_falls_even_when_the_uniform_is_zero():
    logits = torch.tensor([[[0.0, 0.5, 0.5]]]).log().expand(1, 3, 3)
    for law, sampling in ((logits[:, :1] * 0, "independent"), (None, "top_k")):
        verdict = verify_tree(
            logits,
            law,
            torch.tensor([[0, 0]]),
            (-1, -1),
            accept_uniforms=torch.zeros(1, 2, dtype=torch.float64),
            emit_uniforms=torch.zeros(1, 2, dtype=torch.float64),
            sampling=sampling,
        )
        assert (verdict.num_accepted.item(), verdict.next_tokens.item()) == (0, 1)


def test_the_shape_of_a_tree():
    parents = (-1, -1, 0, 2)
    assert node_depths(parents) == (1, 1, 2, 3)
    assert inner_nodes(parents) == (-1, 0, 2)
    assert ancestor_mask(parents).long().tolist() == [
        [1, 0, 0, 0],
        [0, 1, 0, 0],
        [1, 0, 1, 0],
        [1, 0, 1, 1],
    ]


def test_bad_logits_give_no_token_instead_of_a_wrong_one():
    logits = torch.zeros(2, 3, 4)
    logits[0, 2], logits[1, 0] = torch.nan, torch.nan
    logits[0, 0, 1] = 50.0
    noise = {
        "accept_uniforms": torch.full((2, 2), 0.5, dtype=torch.float64),
        "emit_uniforms": torch.full((2, 2), 0.5, dtype=torch.float64),
    }
    tokens, parents = torch.tensor([[3, 1], [3, 1]]), (-1, -1)
    for verdict in (
        verify_tree(logits, logits[:, 1:2], tokens, parents, **noise),
        verify_tree(logits, None, tokens, parents, sampling="top_k", **noise),
        verify_tree_greedy(logits, tokens, parents),
    ):
        assert verdict.num_accepted.tolist() == [1, 0]
        assert verdict.next_tokens.tolist() == [-1, -1]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"parents": (-1, 1)}, r"parents\[1\] is 1"),
        ({"sampling": "top_k"}, "takes no draft_logits"),
        ({"draft_logits": None}, "needs draft_logits"),
        ({"draft_logits": torch.zeros(1, 2, 4)}, "1 nodes with children"),
    ],
)
def test_trees_that_do_not_fit_are_named(change, message):
    arguments = {
        "target_logits": torch.zeros(1, 3, 4),
        "draft_logits": torch.zeros(1, 1, 4),
        "tokens": torch.tensor([[1, 2]]),
        "parents": (-1, -1),
        "accept_uniforms": torch.zeros(1, 2, dtype=torch.float64),
        "emit_uniforms": torch.zeros(1, 2, dtype=torch.float64),
    }
    with pytest.raises(ValueError, match=message):
        verify_tree(**{**arguments, **change})
