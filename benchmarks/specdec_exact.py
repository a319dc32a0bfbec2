"""The parts of ``benchmarks/specdec.py`` that count tokens: no time is measured here."""

from dataclasses import dataclass
from typing import Any

import torch
from harness import Goal, table

from selftrain.bench.decoders import left_padded, random_prompts
from selftrain.bench.synthetic import synthetic_pair
from selftrain.decoding import SamplingParams, SpeculativeDecoder

TEMPERATURES = (0.25, 0.5, 0.7, 1.0, 1.5)


@dataclass
class Part:
    """What one part found."""

    rows: list[dict[str, Any]]
    goals: list[Goal]
    page: str


def pair_of(name: str, dtype: str, quick: bool, **options: float) -> tuple[Any, Any]:
    """Return a synthetic pair; a quick run takes the tiny one, whatever the name."""
    name = "tiny" if quick else name
    return synthetic_pair(name, dtype=getattr(torch, dtype), **options)


def measure_verifiers(quick: bool) -> Part:
    """Block efficiency of block and of token verification, on the same prompts."""
    num_rows, num_new = (8, 16) if quick else (96, 128)
    rows, goals = [], []
    for corruption in (0.15, 0.45):
        pair = pair_of("small", "float32", quick, corruption=corruption)
        for temperature in TEMPERATURES:
            row = _block_against_token(pair, temperature, num_rows=num_rows, num_new=num_new)
            rows.append({"corruption": corruption, **row})
            name = f"block - token, T={temperature:g}, acceptance {row['acceptance']:.2f}"
            gain = row["block"] - row["token"]
            goals.append(Goal(f"{name}, standard errors", gain / row["difference_error"], -2.0))
    # Near T = 0 the rules are the same and noise decides which looks better; over all T it may not.
    gains = [row["block"] - row["token"] for row in rows]
    error = sum(row["difference_error"] ** 2 for row in rows) ** 0.5
    goals.append(Goal("block - token, all cases, standard errors", sum(gains) / error, 2.0))
    lines = [
        [
            f"{r['temperature']:g}",
            f"{r['acceptance']:.3f}",
            f"{r['token']:.3f} ± {r['token_error']:.3f}",
            f"{r['block']:.3f} ± {r['block_error']:.3f}",
            f"{r['block'] - r['token']:+.3f} ± {r['difference_error']:.3f}",
        ]
        for r in rows
    ]
    heads = ["T", "acceptance", "token", "block", "difference"]
    text = (
        f"Tokens per target call with 4 draft tokens, on {num_rows * num_new:,} tokens for each "
        f"number: {num_rows} prompts, the same for both; ± one standard error over prompts."
    )
    return Part(rows, goals, f"{text}\n\n{table(heads, lines)}")


def _block_against_token(
    pair: tuple[Any, Any], temperature: float, *, num_rows: int, num_new: int
) -> dict[str, Any]:
    target, draft = pair
    prompts = random_prompts(num_rows, 16, vocab_size=target.config.vocab_size, seed=1, round=0)
    ids, mask = left_padded(prompts, target.device)
    found: dict[str, Any] = {"temperature": temperature}
    deviations = {}
    for verifier in ("token", "block"):
        decoder = SpeculativeDecoder(target, draft, num_draft_tokens=4, verifier=verifier)
        output = decoder.generate(
            ids,
            attention_mask=mask,
            params=SamplingParams(max_new_tokens=num_new, temperature=temperature, seed=2),
            eos_token_ids=(),
            return_blocks=True,
        )
        calls = torch.zeros(num_rows, dtype=torch.float64)
        for block in output.blocks:
            calls[block.row] += 1
        found[verifier], deviations[verifier] = tokens_per_call(num_new, calls)
        found[f"{verifier}_error"] = standard_error(deviations[verifier])
        if verifier == "token":
            found["acceptance"] = output.stats.analytic_acceptance
    found["difference_error"] = standard_error(deviations["block"] - deviations["token"])
    return found


def tokens_per_call(num_new: int, calls: torch.Tensor) -> tuple[float, torch.Tensor]:
    """Return tokens over calls of all rows, and what each row adds to its error, to first order."""
    ratio = num_new / float(calls.mean())
    return ratio, (num_new - ratio * calls) / calls.mean()


def standard_error(values: torch.Tensor) -> float:
    """Return the standard error of the mean of independent rows."""
    return float(values.std()) / len(values) ** 0.5


def measure_coupled(quick: bool) -> Part:
    """Coupled sampling against plain sampling of the same seeds, token by token."""
    num_rows, num_new, num_batches = (4, 16, 1) if quick else (128, 196, 4)
    drafts = (0.0, 0.3)  # corruptions
    rows = [{"corruption": c, "num_tokens": 0, "num_different": 0, "calls": 0} for c in drafts]
    pairs = [pair_of("small", "float64", quick, corruption=c) for c in drafts]
    target = pairs[0][0]  # the same in all
    for batch in range(num_batches):
        prompts = random_prompts(
            num_rows, 16, vocab_size=target.config.vocab_size, seed=3, round=batch
        )
        options = {
            "attention_mask": left_padded(prompts, target.device)[1],
            "params": SamplingParams(max_new_tokens=num_new, seed=batch),
            "eos_token_ids": (),
        }
        ids = left_padded(prompts, target.device)[0]
        plain = SpeculativeDecoder(*pairs[0], num_draft_tokens=0, verifier="coupled").generate(
            ids, **options
        )
        for row, pair in zip(rows, pairs, strict=True):
            output = SpeculativeDecoder(*pair, num_draft_tokens=4, verifier="coupled").generate(
                ids, **options
            )
            differs = output.sequences != plain.sequences
            row["num_tokens"] += int(output.lengths.sum())
            row["num_different"] += int(differs.sum())
            row["calls"] += output.stats.num_target_calls
            row["acceptance"] = output.stats.acceptance_rate
    for row in rows:
        row["block_efficiency"] = row["num_tokens"] / row["calls"]
    goals = [
        Goal(
            f"coupled unlike plain, of {r['num_tokens']:,} tokens, {r['acceptance']:.2f} accepted",
            r["num_different"],
            0,
            at_least=False,
        )
        for r in rows
    ]
    lines = [
        [
            f"{r['acceptance']:.3f}",
            f"{r['block_efficiency']:.2f}",
            f"{r['num_tokens']:,}",
            f"{r['num_different']:,}",
        ]
        for r in rows
    ]
    heads = ["acceptance", "tokens per call", "tokens", "unlike plain sampling"]
    text = (
        f"Coupled sampling at T = 1 in float64, {num_rows} rows together, 4 draft tokens, against "
        "plain sampling with the same seeds (`num_draft_tokens=0`)."
    )
    return Part(rows, goals, f"{text}\n\n{table(heads, lines)}")
