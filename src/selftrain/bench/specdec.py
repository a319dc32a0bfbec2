"""One case of speculative decoding: every decoder in turn, beside the models' bare forwards."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from selftrain._core.checks import check_int, check_range
from selftrain._core.rng import derive
from selftrain.bench.costs import BareForwards, ForwardCosts
from selftrain.bench.decoders import (
    PEER_ASSISTED,
    PEER_PLAIN,
    PLAIN,
    SPECULATIVE,
    Decoded,
    Decoder,
    NumDraftTokens,
    VerifierName,
    peer_assisted,
    peer_plain,
    random_prompts,
)
from selftrain.bench.pair import Pair
from selftrain.bench.rows import Runs, is_speculative, prediction, speed_row
from selftrain.bench.timing import milliseconds, take_turns
from selftrain.decoding.params import SamplingParams
from selftrain.decoding.planner import measure_costs


@dataclass(frozen=True, kw_only=True, slots=True)
class Case:
    """What is decoded, and how."""

    num_draft_tokens: NumDraftTokens
    """Tokens drafted per block; "auto" leaves it to the planner."""
    temperature: float = 0.0
    """0 is greedy."""
    batch_size: int = 1
    """Prompts decoded together; more than one are of different lengths."""
    verifier: VerifierName = "default"
    """Ours; "default" is the decoder's own choice."""
    max_new_tokens: int = 128
    """New tokens of every row: nothing ends a text early."""
    prompt_tokens: int = 32
    """Length of the longest prompt."""
    repeats: int = 5
    """Timed rounds, each with other prompts, after one to warm up."""
    seed: int = 0
    """Of prompts and noise."""

    def __post_init__(self) -> None:
        if self.num_draft_tokens != "auto":
            check_int("num_draft_tokens", self.num_draft_tokens, low=1)
        check_range("temperature", self.temperature, low=0.0)
        for name in ("batch_size", "max_new_tokens", "prompt_tokens", "repeats"):
            check_int(name, getattr(self, name), low=1)

    def prompts(self, round: int, vocab_size: int) -> list[list[int]]:
        """Return the prompts of one round."""
        return random_prompts(
            self.batch_size,
            self.prompt_tokens,
            vocab_size=vocab_size,
            seed=self.seed,
            round=round,
        )

    def params(self, round: int) -> SamplingParams:
        """Return how the tokens of one round are drawn."""
        return SamplingParams(
            max_new_tokens=self.max_new_tokens,
            temperature=self.temperature,
            seed=derive(self.seed, "noise", round),
        )


def decoders_of(case: Case, pair: Pair, *, peers: bool = True) -> dict[str, Decoder]:
    """Return the decoders of a case by name, ours with each of the pair's forwards.

    Args:
        case: The case.
        pair: The models.
        peers: Whether to measure ``transformers`` too.
    """
    found: dict[str, Decoder] = {}
    for forward in pair.forwards:
        suffix = "" if forward == "eager" else f", {forward}"
        found[SPECULATIVE + suffix] = pair.decoder(
            num_draft_tokens=case.num_draft_tokens, verifier=case.verifier, forward=forward
        )
        found[PLAIN + suffix] = pair.decoder(num_draft_tokens=0, forward=forward)
    if peers:
        found[PEER_PLAIN] = peer_plain(pair.target)
        found[PEER_ASSISTED] = peer_assisted(
            pair.target, pair.draft, num_draft_tokens=case.num_draft_tokens
        )
    return found


def measure_case(
    case: Case,
    pair: Pair,
    *,
    peers: bool = True,
    report: Callable[[int, str], None] | None = None,
) -> dict[str, Any]:
    """Measure one case and return its row of plain numbers.

    Args:
        case: The case.
        pair: The models.
        peers: Whether to measure ``transformers`` too.
        report: Called with the round and the decoder's name before each call.

    Returns:
        What :func:`speed_row` returns; where the number of draft tokens is fixed, also ``costs`` in
        milliseconds (``verify`` and ``ours`` are what the planner measures) and ``prediction``.

    Raises:
        RuntimeError: If a decoder did not do the work: all have to generate equally many tokens.
    """
    decoders = decoders_of(case, pair, peers=peers)
    beside = _Beside(case, pair, decoders) if case.num_draft_tokens != "auto" else None

    def task(decoder: Decoder) -> Callable[[int], Decoded]:
        return lambda turn: decoder(case.prompts(turn, pair.vocab_size), case.params(turn))

    runs = take_turns(
        {name: task(decoder) for name, decoder in decoders.items()},
        rounds=case.repeats,
        device=pair.target.device,
        seed=case.seed,
        between=beside.measure if beside else None,
        report=report,
    )
    _check_work(case, runs)
    if beside is None:
        return speed_row(runs)
    row = speed_row(runs, beside.costs, beside.first_token_seconds)
    row["costs"] = beside.milliseconds()
    row["prediction"] = prediction(row, beside.bare.all())
    return row


class _Beside:
    """What is measured at the end of each round: bare forwards, and the time to a first token."""

    def __init__(self, case: Case, pair: Pair, decoders: dict[str, Decoder]) -> None:
        self.case, self.pair = case, pair
        self.decoders = {n: d for n, d in decoders.items() if is_speculative(n)}
        self.context = case.prompt_tokens + case.max_new_tokens // 2
        self.num = int(case.num_draft_tokens)
        self.bare = BareForwards(
            pair.target,
            pair.draft,
            context=self.context,
            num_draft_tokens=self.num,
            batch_size=case.batch_size,
        )
        self.costs: list[ForwardCosts] = []
        self.first_token_seconds: dict[str, list[float]] = {name: [] for name in self.decoders}

    def measure(self, turn: int) -> None:
        prompts = self.case.prompts(turn, self.pair.vocab_size)
        params = replace(self.case.params(turn), max_new_tokens=1)
        device = self.pair.target.device
        costs = self.bare.measure()
        for name, decoder in self.decoders.items():
            took = milliseconds(lambda d=decoder: d(prompts, params), device)
            if turn >= 0:  # before that, they warm up
                self.first_token_seconds[name].append(took / 1000)
        if turn >= 0:
            self.costs.append(costs)
        else:
            self.bare.forget()

    def milliseconds(self) -> dict[str, Any]:
        """Return the medians of all rounds, and beside them what the planner measures."""
        medians = self.bare.all()
        row: dict[str, Any] = {part: getattr(medians, part) for part in self.bare.parts}
        if self.case.batch_size == 1:  # the planner measures single rows
            costs = measure_costs(
                self.pair.target,
                self.pair.draft,
                context=self.context,
                num_draft_tokens=self.num,
                params=self.case.params(0),
            )
            row["verify"] = costs.verify
            row["ours"] = {part: getattr(costs, part) for part in self.bare.parts}
        return row


def _check_work(case: Case, runs: Runs) -> None:
    want = case.batch_size * case.max_new_tokens
    for name, timed in runs.items():
        for t in timed:
            if t.result.num_new_tokens != want:
                raise RuntimeError(
                    f"{name} generated {t.result.num_new_tokens} tokens where {want} were asked "
                    "for; the speeds of different work cannot be compared."
                )
