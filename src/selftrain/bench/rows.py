"""From timed calls to a row of plain numbers.

Every ratio is the median over rounds of the rounds' ratios: what slows a whole round down, slows
both sides down.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from selftrain.bench.costs import ForwardCosts
from selftrain.bench.decoders import PEER_ASSISTED, PEER_PLAIN, PLAIN, SPECULATIVE, Decoded
from selftrain.bench.timing import Timed, quartiles
from selftrain.decoding.outcome import SpeculativeStats

Runs = Mapping[str, Sequence[Timed[Decoded]]]


def is_speculative(name: str) -> bool:
    """Return whether a decoder is our speculative one, with whatever forwards."""
    return name == SPECULATIVE or name.startswith(f"{SPECULATIVE}, ")


def speed_row(
    runs: Runs,
    costs: Sequence[ForwardCosts] = (),
    first_token_seconds: Mapping[str, Sequence[float]] | None = None,
) -> dict[str, Any]:
    """Return how fast every decoder was, and how that compares.

    Args:
        runs: The timed calls of every decoder, by round.
        costs: The bare forwards measured in each round, or none.
        first_token_seconds: How long our decoders took in each round to give one token a row.

    Returns:
        ``methods`` by name, each with ``tokens_per_second``, ``seconds``, ``block_efficiency``,
        ``peak_bytes``, the ratios ``over`` the others, and for the speculative ones
        ``share_of_ceiling`` of the whole call and ``share_after_first_token``; ``acceptance``;
        ``num_rounds_as_plain``, in how many rounds the speculative decoder gave the tokens of the
        plain one (greedy: all but for near-ties). Speeds and ratios are ``[low, median, high]``,
        the quartiles over rounds.
    """
    methods = {name: _method(name, runs) for name in runs}
    for name in filter(is_speculative, runs) if costs else ():
        ceilings = [
            cost.ceiling(t.result.block_efficiency)
            for cost, t in zip(costs, runs[name], strict=True)
        ]
        methods[name]["share_of_ceiling"] = _ratio(_rates(runs[name]), ceilings)
        if first_token_seconds is not None:
            rates = _rates_after_first(runs[name], first_token_seconds[name])
            methods[name]["share_after_first_token"] = _ratio(rates, ceilings)
    texts = {n: [t.result.new_tokens for t in runs[n]] for n in (SPECULATIVE, PLAIN)}
    same = [a == b for a, b in zip(texts[SPECULATIVE], texts[PLAIN], strict=True)]
    return {
        "methods": methods,
        "acceptance": _acceptance(t.result.stats for t in runs[SPECULATIVE]),
        "num_rounds_as_plain": sum(same),
    }


def prediction(row: Mapping[str, Any], costs: ForwardCosts) -> dict[str, float | None]:
    """Return the ceiling and the speed-ups of the cost model, and the one that was measured.

    Args:
        row: What :func:`speed_row` returned.
        costs: Medians over all rounds.
    """
    mine = row["methods"][SPECULATIVE]
    efficiency, verify = mine["block_efficiency"], row["costs"].get("verify")
    return {
        "ceiling_tokens_per_second": costs.ceiling(efficiency),
        "speedup": costs.speedup(efficiency),
        "speedup_with_verify": verify and costs.speedup(efficiency, verify=verify),
        "measured_speedup": mine["over"][PLAIN][1],
    }


def _method(name: str, runs: Runs) -> dict[str, Any]:
    timed = runs[name]
    tokens = sum(t.result.num_new_tokens for t in timed)
    bases = [base for base in (PLAIN, PEER_PLAIN, PEER_ASSISTED) if base in runs and base != name]
    return {
        "tokens_per_second": _three(_rates(timed)),
        "seconds": [t.seconds for t in timed],
        "block_efficiency": tokens / sum(t.result.num_target_calls for t in timed),
        "peak_bytes": max((t.peak_bytes for t in timed if t.peak_bytes), default=None),
        "over": {base: _ratio(_rates(timed), _rates(runs[base])) for base in bases},
    }


def _rates(timed: Sequence[Timed[Decoded]]) -> list[float]:
    return [t.result.num_new_tokens / t.seconds for t in timed]


def _rates_after_first(timed: Sequence[Timed[Decoded]], first: Sequence[float]) -> list[float]:
    """Return the speeds of what follows each row's first token: without the prompts' forward."""
    return [
        (t.result.num_new_tokens - len(t.result.new_tokens)) / max(t.seconds - seconds, 1e-9)
        for t, seconds in zip(timed, first, strict=True)
    ]


def _ratio(above: Sequence[float], below: Sequence[float]) -> list[float]:
    return _three([a / b for a, b in zip(above, below, strict=True)])


def _three(values: Sequence[float]) -> list[float]:
    found = quartiles(values)
    return [found.low, found.median, found.high]


def _acceptance(stats: Iterable[SpeculativeStats | None]) -> dict[str, float | None]:
    first, *others = [s for s in stats if s is not None]
    for other in others:
        first = first + other
    if first.num_tested == 0:  # the planner never speculated
        return {"analytic_acceptance": None, "acceptance_rate": None, "accepted_fraction": None}
    return {
        "analytic_acceptance": first.analytic_acceptance,
        "acceptance_rate": first.acceptance_rate,
        "accepted_fraction": first.accepted_fraction,
    }
