"""One call that puts a verifier through everything known to go wrong."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from selftrain.decoding.proof.enumeration import (
    Drafting,
    Outcome,
    Verifier,
    joint_law,
)
from selftrain.decoding.proof.tabular import (
    LanguageModel,
    TabularModel,
    all_texts,
    random_model,
    sequence_law,
)
from selftrain.ops.philox import gumbel


@dataclass(frozen=True, slots=True)
class Scenario:
    """A pair of models and how drafts are made."""

    name: str
    target: LanguageModel
    draft: LanguageModel
    drafting: Drafting
    num_tokens: int | None = None
    """Length of the texts, in as many blocks as it takes; None for a single block."""


@dataclass(frozen=True, slots=True)
class Case:
    """What came of one scenario."""

    name: str
    passed: bool
    deviation: float
    """The largest difference between a text's probability and the target's; NaN if it raised. Of a
    coupled rule: the share of blocks that differ from plain sampling."""
    problem: str = ""
    """What fails."""


@dataclass(frozen=True, slots=True)
class Proof:
    """What came of all scenarios; ``str`` makes a table of it."""

    cases: tuple[Case, ...]

    @property
    def passed(self) -> bool:
        """Whether no case fails."""
        return all(case.passed for case in self.cases)

    @property
    def failures(self) -> tuple[Case, ...]:
        """The cases that fail."""
        return tuple(case for case in self.cases if not case.passed)

    def __str__(self) -> str:
        """Return one line a case."""
        width = max(len(case.name) for case in self.cases)
        return "\n".join(
            f"{case.name:{width}}  {'passes' if case.passed else 'FAILS '}  "
            f"{case.deviation:8.1e}  {case.problem}".rstrip()
            for case in self.cases
        )


def default_scenarios(*, temperature: float = 1.0, seed: int = 0) -> list[Scenario]:
    """Return the scenarios that :func:`prove` runs.

    Dense and sparse random laws, disjoint and equal ones, truncated ones, drafts that stop early or
    are chosen without chance, several blocks.

    Args:
        temperature: Of the target; 0 for a verifier of greedy decoding.
        seed: Seed of the tables.
    """

    def pair(vocab: int, **changes: object) -> tuple[TabularModel, TabularModel]:
        models = [random_model(vocab, seed=2 * seed + i, **changes) for i in (0, 1)]  # pyrefly: ignore
        return models[0], models[1]

    def drafting(num: int, **changes: object) -> Drafting:
        return Drafting(num_draft_tokens=num, **changes)  # pyrefly: ignore

    (p3, q3), (p4, q4) = pair(3), pair(4)
    sparse = pair(4, zeros=0.5)
    ends = {"stops": lambda texts: texts[:, -1] == 1}
    scenarios = [
        Scenario(f"{v} token{'s'[: v - 1]}, {k} drafted", *pair(v), drafting(k))
        for v, k in ((1, 2), (2, 1), (4, 1), (3, 2), (3, 3), (2, 4))
    ] + [
        Scenario("target without some tokens", sparse[0], q4, drafting(2)),
        Scenario("draft without some tokens", p4, sparse[1], drafting(2)),
        Scenario("both without some tokens", *sparse, drafting(2)),
        Scenario("nearly all mass on one token", *pair(3, concentration=0.1), drafting(2)),
        Scenario("no token in common", *_disjoint(seed), drafting(2)),
        Scenario("equal laws", p3, p3, drafting(3)),
        Scenario("top-k of both", p4.warped(top_k=2), q4.warped(top_k=2), drafting(2)),
        Scenario("top-p of both", p4.warped(top_p=0.8), q4.warped(top_p=0.8), drafting(2)),
        Scenario("draft at another temperature", p3, q3.warped(temperature=0.5), drafting(2)),
        Scenario("temperature 0", p3.warped(temperature=0.0), q3, drafting(2)),
        Scenario("draft stops after a token", p3, q3, drafting(3, **ends)),
        Scenario("draft chosen without chance", p3, q3, drafting(3, determined=True)),
        Scenario("several blocks", *pair(2), drafting(2), 4),
        Scenario("several blocks, draft stops", *pair(2), drafting(2, **ends), 4),
    ]
    if temperature != 1.0:
        scenarios = [
            replace(s, target=s.target.warped(temperature=temperature))  # pyrefly: ignore
            for s in scenarios
        ]
    return scenarios


def _disjoint(seed: int) -> tuple[TabularModel, TabularModel]:
    return (
        random_model(4, support=(0, 2), seed=2 * seed),
        random_model(4, support=(1, 3), seed=2 * seed + 1),
    )


def prove(
    verifier: Verifier,
    *,
    scenarios: Sequence[Scenario] | None = None,
    tolerance: float = 1e-12,
) -> Proof:
    """Compare the exact law of what ``verifier`` emits with the target's, text by text.

    A case fails if a probability is off by more than ``tolerance``; if some noise, however
    unlikely, makes the verifier emit what the target never does; or if it raises.

    Args:
        verifier: Called as :func:`selftrain.ops.verify_tokens` is; for functions that draw noise
            themselves see :func:`foreign`.
        scenarios: What to try; default: :func:`default_scenarios`.
        tolerance: Largest deviation of a probability. A verifier that draws its uniforms in single
            precision is right to about 1e-7.

    Example:
        >>> from selftrain.ops import verify_block
        >>> prove(verify_block, scenarios=default_scenarios()[:4]).passed
        True
    """
    scenarios = default_scenarios() if scenarios is None else scenarios
    return Proof(tuple(_attempt(s, lambda s: _compare(verifier, s, tolerance)) for s in scenarios))


def _attempt(scenario: Scenario, run: Callable[[Scenario], Case]) -> Case:
    try:
        return run(scenario)
    except Exception as error:  # whatever a foreign verifier may raise is a result
        problem = f"{type(error).__name__}: {error}"
        return Case(scenario.name, False, float("nan"), problem)


def _compare(verifier: Verifier, scenario: Scenario, tolerance: float) -> Case:
    num_tokens = scenario.num_tokens or scenario.drafting.num_draft_tokens + 1
    law, possible = joint_law(
        verifier,
        scenario.target,
        scenario.draft,
        scenario.drafting,
        num_tokens,
        blocks_until=scenario.num_tokens or 1,
    )
    deviation = float((law - sequence_law(scenario.target, num_tokens)).abs().max())
    problem = "" if deviation <= tolerance else "another law than the target's"
    if not possible:
        problem = "some noise brings out what the target never emits"
    return Case(scenario.name, not problem, deviation, problem)


class CoupledVerifier(Protocol):
    """Anything that is called as :func:`selftrain.ops.verify_coupled` is."""

    def __call__(
        self, target_logits: Tensor, draft_tokens: Tensor, /, *, gumbel: Tensor
    ) -> Outcome:
        """Decide how many drafted tokens stand, and what follows them."""
        ...


def prove_coupled(
    verifier: CoupledVerifier,
    *,
    scenarios: Sequence[Scenario] | None = None,
    num_draws: int = 200,
    seed: int = 0,
) -> Proof:
    """Check that a coupled verifier emits what plain sampling with the same noise does.

    Every possible draft is tried with every draw of the noise; the outcome must be the beginning of
    the text that plain sampling gives, token for token.

    Args:
        verifier: Called as :func:`selftrain.ops.verify_coupled` is.
        scenarios: What to try; default: :func:`default_scenarios`. Only the targets and the numbers
            of drafted tokens matter.
        num_draws: How often noise is drawn in each scenario.
        seed: Seed of the noise.
    """
    scenarios = default_scenarios() if scenarios is None else scenarios

    def run(scenario: Scenario) -> Case:
        differ = _share_that_differs(verifier, scenario, num_draws, seed)
        return Case(scenario.name, differ == 0, differ, "another text" if differ else "")

    return Proof(tuple(_attempt(s, run) for s in scenarios))


def _share_that_differs(
    verifier: CoupledVerifier, scenario: Scenario, num_draws: int, seed: int
) -> float:
    k, target = scenario.drafting.num_draft_tokens, scenario.target
    vocab = target(torch.zeros(1, 0, dtype=torch.long)).shape[-1]
    seeds = torch.arange(seed, seed + num_draws).unsqueeze(1)
    noise = gumbel(seeds, position=torch.arange(k + 1), vocab_size=vocab, dtype=torch.float64)
    plain = torch.zeros(num_draws, 0, dtype=torch.long)
    for place in range(k + 1):
        token = (target(plain) + noise[:, place]).argmax(-1, keepdim=True)
        plain = torch.cat([plain, token], 1)
    drafts = all_texts(vocab, k)
    draw = torch.arange(num_draws).repeat_interleave(len(drafts))
    drafts = drafts.repeat(num_draws, 1)
    logits = torch.stack([target(drafts[:, :i]) for i in range(k + 1)], 1)
    outcome = verifier(logits, drafts, gumbel=noise[draw])
    places = torch.arange(k + 1)
    ends = outcome.num_accepted.unsqueeze(1)
    emitted = torch.nn.functional.pad(drafts, (0, 1)).scatter(
        1, ends, outcome.next_tokens.unsqueeze(1)
    )
    differs = ((emitted != plain[draw]) & (places <= ends)).any(1)
    return float(differs.double().mean())
