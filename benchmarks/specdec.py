"""Speculative decoding in numbers: how near the ceiling, how far above the peer, and how exact?

    python benchmarks/specdec.py                  # all parts
    python benchmarks/specdec.py --part auto      # one of them
    python benchmarks/specdec.py --quick          # a minute; every part, no meaningful numbers

On two quiet cores the parts take about:

- table (11 min): batch 1, greedy and T = 1, two pairs in float32 and bfloat16, against the ceiling
  that the models' bare forwards set and against ``transformers``, at equal settings.
- batch (4 min): 8 ragged prompts, against ``transformers`` row by row and in one plain batch; and
  whether each row is what it is alone, in float64.
- auto (7 min): the planner, new in every call, against plain decoding, for drafts from hopeless to
  nearly perfect.
- verifiers (2 min): block efficiency of block and of token verification.
- coupled (2 min): are 100,000 tokens those of plain sampling with the same seed?

The models are random (:mod:`selftrain.bench.synthetic`), so nothing is downloaded or trained.
"""

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import transformers
import tyro
from harness import ROOT, Goal, environment_line, save_rows, table

from selftrain._core.io import read_json, write_text
from selftrain.bench.decoders import (
    PEER_ASSISTED,
    PEER_PLAIN,
    PLAIN,
    SPECULATIVE,
    left_padded,
    random_prompts,
    speculative,
)
from selftrain.bench.forwards import FORWARDS
from selftrain.bench.pages import case_table, model_cells, short_dtype, speed_cells
from selftrain.bench.specdec import Case, measure_case
from selftrain.bench.synthetic import PAIRS, synthetic_pair
from selftrain.bench.timing import pinned_threads, quartiles, take_turns
from selftrain.decoding import SamplingParams, SpeculativeDecoder

LAWS = {0.0: "greedy", 1.0: "T = 1"}
SHARE = 0.90
"""Wanted share of the ceiling."""
OVER_ASSISTED = {"large": 1.1, "small": 1.4}
"""Wanted gain over assisted generation, with the models' forwards as they are ..."""
OVER_ASSISTED_LEAN = {"large": 1.5, "small": 2.0}
"""... and with leaner ones."""
DRAFTS = ((0.004, 0.0), (0.02, 0.07), (0.02, 0.25), (0.02, 0.45), (0.02, 0.62), (0.02, 0.9))
"""Damping and corruption of drafts that are accepted from 0.99 down to 0.1, sampling at T = 1."""
TEMPERATURES = (0.25, 0.5, 0.7, 1.0, 1.5)


@dataclass
class Args:
    """Command line."""

    part: Literal["table", "batch", "auto", "verifiers", "coupled", "all"] = "all"
    """Which part to measure."""
    quick: bool = False
    """A minute, to see that it runs."""
    threads: int = 2
    """Torch's threads."""
    json: Path = ROOT / "benchmarks/results/specdec.json"
    """Where the rows go; the part's name is put before the suffix."""


@dataclass
class Part:
    """What one part found."""

    rows: list[dict[str, Any]]
    goals: list[Goal]
    page: str


def measure_table(quick: bool) -> Part:
    """Batch 1: share of the ceiling, and gain over assisted generation."""
    rows = []
    for pair in ("large", "small"):
        for dtype in ("float32", "bfloat16"):
            models = _pair(pair, dtype, quick)
            for temperature in LAWS:
                case = Case(
                    num_draft_tokens=PAIRS[pair].num_draft_tokens,
                    temperature=temperature,
                    # What the peer does; block verification, the default, is measured below.
                    verifier="token" if temperature else "default",
                    max_new_tokens=16 if quick else {"large": 128, "small": 384}[pair],
                    prompt_tokens=32,
                    repeats=1 if quick else 5,
                )
                row = measure_case(case, *models, forwards=tuple(FORWARDS))
                rows.append({"pair": pair, "dtype": dtype, "case": asdict(case), **row})
    return Part(rows, list(_table_goals(rows)), _table_page(rows))


def _table_goals(rows: list[dict[str, Any]]) -> Iterator[Goal]:
    for row in rows:
        name = ", ".join(_labels(row))
        mine = row["methods"][SPECULATIVE]
        yield Goal(f"share of the ceiling, {name}", mine["share_of_ceiling"][1], SHARE)
        over = mine["over"][PEER_ASSISTED][1]
        yield Goal(f"over assisted, {name}", over, OVER_ASSISTED[row["pair"]])
        lean = [
            method["over"][PEER_ASSISTED][1]
            for method_name, method in row["methods"].items()
            if method_name.startswith(f"{SPECULATIVE}, ")
        ]
        if lean:
            wanted = OVER_ASSISTED_LEAN[row["pair"]]
            yield Goal(f"over assisted, leaner forwards, {name}", max(lean), wanted)


def _table_page(rows: list[dict[str, Any]]) -> str:
    labels = [_labels(row) for row in rows]
    heads = ["pair", "dtype", "law"]
    identical = [
        f"{row['num_rounds_as_plain']}/{row['case']['repeats']}"
        for row in rows
        if row["case"]["temperature"] == 0
    ]
    return "\n\n".join(
        [
            "Tokens per second, medians over rounds with quartiles in brackets; ratios are medians "
            "of the rounds' ratios.",
            case_table(labels, heads, [speed_cells(row) for row in rows]),
            "The ceiling is block efficiency / (g T_d + T_{g+1}), from bare forwards with "
            "transformers' own growing cache (`DynamicCache`, cropped back after each), measured "
            "between the rounds.",
            case_table(labels, heads, [model_cells(row) for row in rows]),
            f"Rounds in which greedy speculative text equals plain text: {', '.join(identical)} "
            "(where two tokens nearly tie, a forward over several tokens may round otherwise).",
        ]
    )


def measure_batch(quick: bool) -> Part:
    """Eight ragged prompts: exact row by row, faster than both of the peer's ways."""
    rows, goals = [], []
    pair = _pair("small", "float64", quick)
    for temperature, law in LAWS.items():
        wrong = _rows_unlike_alone(pair, temperature, num_new=8 if quick else 64)
        rows.append({"kind": "exactness", "law": law, "num_rows_unlike_alone": wrong})
        goals.append(Goal(f"rows of 8 unlike the row alone, fp64, {law}", wrong, 0, at_least=False))
    speeds = []
    for name in ("large", "small"):
        models = _pair(name, "float32", quick)
        for temperature, law in LAWS.items():
            case = Case(
                num_draft_tokens=PAIRS[name].num_draft_tokens,
                temperature=temperature,
                batch_size=8,
                verifier="token" if temperature else "default",
                max_new_tokens=8 if quick else {"large": 48, "small": 128}[name],
                prompt_tokens=32,
                repeats=1 if quick else 5,
            )
            row = measure_case(case, *models)
            speeds.append({"pair": name, "dtype": "float32", "case": asdict(case), **row})
            over = row["methods"][SPECULATIVE]["over"]
            goals += [
                Goal(f"over assisted row by row, {name}, {law}", over[PEER_ASSISTED][1], 2.0),
                Goal(f"over a plain batch, {name}, {law}", over[PEER_PLAIN][1], 1.0),
            ]
    labels = [_labels(row) for row in speeds]
    cells = [_batch_cells(row) for row in speeds]
    text = (
        "Eight prompts of 18 to 32 tokens. `transformers` runs assisted generation one row after "
        "another, since it refuses batches, and plain generation as one left-padded batch. In "
        f"float64, rows unlike the same row alone: {sum(r['num_rows_unlike_alone'] for r in rows)} "
        "of 16."
    )
    page = case_table(labels, ["pair", "dtype", "law"], cells)
    return Part([*rows, *speeds], goals, f"{text}\n\n{page}")


def _rows_unlike_alone(pair: tuple[Any, Any], temperature: float, *, num_new: int) -> int:
    target, draft = pair
    decoder = SpeculativeDecoder(target, draft, num_draft_tokens=4)
    prompts = random_prompts(8, 32, vocab_size=target.config.vocab_size, seed=0, round=0)
    ids, mask = left_padded(prompts, target.device)
    params = SamplingParams(max_new_tokens=num_new, temperature=temperature)
    options = {"params": params, "eos_token_ids": ()}
    together = decoder.generate(ids, attention_mask=mask, seeds=range(8), **options).new_tokens()
    alone = [
        decoder.generate(torch.tensor([p]), seeds=[i], **options).new_tokens()[0]
        for i, p in enumerate(prompts)
    ]
    return sum(a != b for a, b in zip(together, alone, strict=True))


def _batch_cells(row: dict[str, Any]) -> dict[str, str]:
    cells = speed_cells(row)
    over = row["methods"][SPECULATIVE]["over"]
    cells["x plain batch"] = f"{over[PEER_PLAIN][1]:.2f}"
    cells["tokens per call"] = f"{row['methods'][SPECULATIVE]['block_efficiency']:.2f}"
    return cells


def measure_auto(quick: bool) -> Part:
    """The planner against plain decoding, whatever the draft."""
    plan = [("small", draft, 1.0) for draft in DRAFTS]
    plan += [("small", draft, 0.0) for draft in DRAFTS[1::2]]
    plan += [("large", DRAFTS[-1], 1.0)]  # a bad draft costs most where drafting does
    rows = []
    for name, (damping, corruption), temperature in plan[:2] if quick else plan:
        pair = _pair(name, "float32", quick, damping=damping, corruption=corruption)
        rounds = 1 if quick else {"small": 7, "large": 5}[name]
        row = _against_plain(pair, temperature, num_new=32 if quick else 512, rounds=rounds)
        rows.append({"pair": name, "damping": damping, "corruption": corruption, **row})
    goals = [
        Goal(
            f"auto over plain, {r['pair']}, {LAWS[r['temperature']]}, "
            f"acceptance {r['acceptance']:.2f}",
            r["over_plain"][1],
            0.98,
        )
        for r in rows
    ]
    lines = [
        [
            r["pair"],
            LAWS[r["temperature"]],
            f"{r['damping']:g} / {r['corruption']:g}",
            f"{r['acceptance']:.2f}",
            f"{r['tokens_per_second'][PLAIN]:.0f}",
            f"{r['tokens_per_second'][SPECULATIVE]:.0f}",
            "{1:.3f} ({0:.3f} to {2:.3f})".format(*r["over_plain"]),
            f"{r['block_efficiency']:.2f}",
        ]
        for r in rows
    ]
    heads = ["pair", "law", "damping / corruption", "acceptance", "plain tok/s", "auto tok/s"]
    text = (
        '512 new tokens with `num_draft_tokens="auto"`; every call begins with a planner that '
        "knows nothing, and its probes are timed. The acceptance is that of a fixed number of "
        "draft tokens on the same prompts; the last column is what the planner made of it."
    )
    return Part(
        rows, goals, f"{text}\n\n{table([*heads, 'auto / plain', 'tokens per call'], lines)}"
    )


def _against_plain(
    pair: tuple[Any, Any], temperature: float, *, num_new: int, rounds: int
) -> dict[str, Any]:
    case = Case(
        num_draft_tokens="auto", temperature=temperature, max_new_tokens=num_new, repeats=rounds
    )
    target, draft = pair
    vocab = target.config.vocab_size
    decoders = {
        SPECULATIVE: speculative(target, draft, num_draft_tokens="auto"),
        PLAIN: speculative(target, draft, num_draft_tokens=0),
    }

    def task(name: str) -> Callable[[int], Any]:
        return lambda turn: decoders[name](case.prompts(turn, vocab), case.params(turn))

    tasks = {name: task(name) for name in decoders}
    runs = take_turns(tasks, rounds=rounds, device=target.device)
    ratios = [
        plain.seconds / mine.seconds
        for mine, plain in zip(runs[SPECULATIVE], runs[PLAIN], strict=True)
    ]
    ratio = quartiles(ratios)
    fixed = speculative(target, draft, num_draft_tokens=3)
    texts = [fixed(case.prompts(i, vocab), case.params(i)) for i in range(2)]
    tested = sum(t.stats.num_tested for t in texts)
    calls = sum(t.result.num_target_calls for t in runs[SPECULATIVE])
    return {
        "temperature": temperature,
        "acceptance": sum(t.stats.total_overlap for t in texts) / tested,
        "tokens_per_second": {
            name: num_new / statistics.median(t.seconds for t in timed)
            for name, timed in runs.items()
        },
        "seconds": {name: [t.seconds for t in timed] for name, timed in runs.items()},
        "over_plain": [ratio.low, ratio.median, ratio.high],
        "block_efficiency": num_new * rounds / calls,
    }


def measure_verifiers(quick: bool) -> Part:
    """Block efficiency of block and of token verification, on the same prompts."""
    num_rows, num_new = (8, 16) if quick else (128, 128)
    rows, goals = [], []
    for corruption in (0.15, 0.45):
        pair = _pair("small", "float32", quick, corruption=corruption)
        for temperature in TEMPERATURES:
            row = _block_against_token(pair, temperature, num_rows=num_rows, num_new=num_new)
            rows.append({"corruption": corruption, **row})
            goals.append(
                Goal(
                    f"block efficiency, block over token, T={temperature:g}, "
                    f"acceptance {row['acceptance']:.2f}",
                    row["block"] / row["token"],
                    1.0,
                )
            )
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
        ratio = num_new / float(calls.mean())
        # The ratio of two means, to first order: its deviation in every row.
        deviations[verifier] = (num_new - ratio * calls) / calls.mean()
        found[verifier] = ratio
        found[f"{verifier}_error"] = _standard_error(deviations[verifier])
        if verifier == "token":
            found["acceptance"] = output.stats.analytic_acceptance
    found["difference_error"] = _standard_error(deviations["block"] - deviations["token"])
    return found


def _standard_error(values: torch.Tensor) -> float:
    return float(values.std()) / len(values) ** 0.5


def measure_coupled(quick: bool) -> Part:
    """Coupled sampling against plain sampling of the same seeds, token by token."""
    num_rows, num_new = (4, 16) if quick else (128, 784)
    rows = []
    for corruption in (0.0, 0.45):
        target, draft = _pair("small", "float64", quick, corruption=corruption)
        prompts = random_prompts(num_rows, 16, vocab_size=target.config.vocab_size, seed=3, round=0)
        ids, mask = left_padded(prompts, target.device)
        outputs = [
            SpeculativeDecoder(target, draft, num_draft_tokens=num, verifier="coupled").generate(
                ids,
                attention_mask=mask,
                params=SamplingParams(max_new_tokens=num_new, seed=4),
                eos_token_ids=(),
            )
            for num in (0, 4)
        ]
        plain, coupled = (torch.tensor(output.new_tokens()) for output in outputs)
        rows.append(
            {
                "corruption": corruption,
                "num_tokens": plain.numel(),
                "num_different": int((plain != coupled).sum()),
                "acceptance": outputs[1].stats.acceptance_rate,
                "block_efficiency": outputs[1].stats.block_efficiency,
            }
        )
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
    text = f"Coupled sampling at T = 1 in float64, {num_rows} rows together, 4 draft tokens."
    return Part(rows, goals, f"{text}\n\n{table(heads, lines)}")


PARTS = {
    "table": measure_table,
    "batch": measure_batch,
    "auto": measure_auto,
    "verifiers": measure_verifiers,
    "coupled": measure_coupled,
}


def _pair(name: str, dtype: str, quick: bool, **options: float) -> tuple[Any, Any]:
    name = "tiny" if quick else name
    return synthetic_pair(name, dtype=getattr(torch, dtype), **options)


def _labels(row: dict[str, Any]) -> Sequence[str]:
    return row["pair"], short_dtype(row["dtype"]), LAWS[row["case"]["temperature"]]


def main(args: Args) -> None:
    # transformers warns of what its own assisted generation does.
    transformers.utils.logging.set_verbosity_error()
    if args.quick:
        print("Quick: every pair is the tiny one, and the numbers mean nothing.\n")
    names = list(PARTS) if args.part == "all" else [args.part]
    goals = []
    for name in names:
        with pinned_threads(args.threads):
            begun = time.perf_counter()
            part = PARTS[name](args.quick)
            seconds = time.perf_counter() - begun
            path = args.json.with_name(f"{args.json.stem}_{name}{args.json.suffix}")
            if args.quick and args.json == Args.json:
                path = Path("runs/bench-specdec-quick") / path.name
            save_rows(path, part.rows, seed=0, goals=part.goals)
        where = environment_line(read_json(path)["environment"])
        command = f"python benchmarks/specdec.py --part {name}"
        page = f"*{where}; command `{command}`, {seconds / 60:.1f} minutes.*\n\n{part.page}\n"
        if not args.quick:
            write_text(ROOT / f"docs/tables/specdec_{name}.md", page)
        print(f"{name}\n\n{page}")
        goals += part.goals
    for goal in goals:
        print(goal.line())


if __name__ == "__main__":
    main(tyro.cli(Args))
