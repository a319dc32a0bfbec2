"""Speculative decoding in numbers: how near the ceiling, how far above the peer, and how exact?

    python benchmarks/specdec.py                  # all parts
    python benchmarks/specdec.py --part auto      # one of them
    python benchmarks/specdec.py --quick          # a minute; every part, no meaningful numbers

On two quiet cores the parts take about:

- table (8 min, and as much again for compiling): batch 1, greedy and T = 1, two pairs in float32
  and bfloat16, against the ceiling that the models' bare forwards set and against
  ``transformers``, at equal settings.
- batch (4 min): 8 ragged prompts, against ``transformers`` row by row and in one plain batch; and
  whether each row is what it is alone, in float64.
- auto (7 min): the planner, new in every call, against plain decoding, for drafts from hopeless to
  nearly perfect.
- verifiers (3 min): block efficiency of block and of token verification.
- coupled (3 min): are 100,000 tokens those of plain sampling with the same seed?

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
from specdec_exact import Part, measure_coupled, measure_verifiers, pair_of

from selftrain._core.io import read_json, write_text
from selftrain.bench.decoders import (
    PEER_ASSISTED,
    PEER_PLAIN,
    PLAIN,
    SPECULATIVE,
    left_padded,
    random_prompts,
)
from selftrain.bench.pages import case_table, model_cells, short_dtype, speed_cells
from selftrain.bench.pair import FORWARDS, Pair
from selftrain.bench.specdec import Case, measure_case
from selftrain.bench.synthetic import PAIRS
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


def measure_table(quick: bool) -> Part:
    """Batch 1: share of the ceiling, and gain over assisted generation."""
    rows = []
    for pair in ("large", "small"):
        for dtype in ("float32", "bfloat16"):
            # Compiling takes minutes.
            forwards = ("packed",) if quick else tuple(FORWARDS)
            models = Pair(*pair_of(pair, dtype, quick), forwards=forwards)
            for temperature in LAWS:
                case = Case(
                    num_draft_tokens=PAIRS[pair].num_draft_tokens,
                    temperature=temperature,
                    # What the peer does; block verification, the default, is measured below.
                    verifier="token" if temperature else "default",
                    max_new_tokens=16 if quick else {"large": 96, "small": 256}[pair],
                    prompt_tokens=32,
                    repeats=1 if quick else 5,
                )
                row = measure_case(case, models)
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
    pair = pair_of("small", "float64", quick)
    for temperature, law in LAWS.items():
        wrong = _rows_unlike_alone(pair, temperature, num_new=8 if quick else 64)
        rows.append({"kind": "exactness", "law": law, "num_rows_unlike_alone": wrong})
        goals.append(Goal(f"rows of 8 unlike the row alone, fp64, {law}", wrong, 0, at_least=False))
    speeds = []
    for name in ("large", "small"):
        models = Pair(*pair_of(name, "float32", quick))
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
            row = measure_case(case, models)
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
        pair = pair_of(name, "float32", quick, damping=damping, corruption=corruption)
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
    models = Pair(*pair)
    vocab = models.vocab_size
    decoders = {
        SPECULATIVE: models.decoder(num_draft_tokens="auto"),
        PLAIN: models.decoder(num_draft_tokens=0),
    }

    def task(name: str) -> Callable[[int], Any]:
        return lambda turn: decoders[name](case.prompts(turn, vocab), case.params(turn))

    tasks = {name: task(name) for name in decoders}
    runs = take_turns(tasks, rounds=rounds, device=models.target.device)
    ratios = [
        plain.seconds / mine.seconds
        for mine, plain in zip(runs[SPECULATIVE], runs[PLAIN], strict=True)
    ]
    ratio = quartiles(ratios)
    fixed = models.decoder(num_draft_tokens=3)
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


PARTS = {
    "table": measure_table,
    "batch": measure_batch,
    "auto": measure_auto,
    "verifiers": measure_verifiers,
    "coupled": measure_coupled,
}


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
