"""DistillSpec in numbers: does on-policy distillation make a better draft, and faster decoding?

    python benchmarks/distillspec.py            # about 35 minutes on two cores
    python benchmarks/distillspec.py --quick    # a minute; every part, no meaningful numbers

One target is trained; then for every seed a draft is trained by next-token loss, and from that
one checkpoint go on, with equal optimizer steps over rows of equal size:

- undistilled: next-token loss on the corpus;
- supervised: forward KL on the corpus;
- target text: forward KL on text that the target wrote, sampled beforehand;
- on-policy: forward KL on text that the draft writes.

The last three also, in 120 steps, from 5 % of the training windows, and with as many steps as fit
into the seconds of the on-policy run (sampling counted). Seeds differ in the first weights, the
order of data, all sampling and the held-out prompts' noise. An interrupted benchmark continues.
"""

import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import tyro
from accelerate import Accelerator
from harness import ROOT, Goal, environment_line, mean_and_spread, save_rows, table

from selftrain._core.io import read_json, write_json, write_text
from selftrain._core.rng import derive
from selftrain.decoding import SamplingParams, SpeculativeDecoder
from selftrain.distill import Distiller
from selftrain.distill.data import prepare_data
from selftrain.distill.drafts import measure_draft, target_texts
from selftrain.distill.measure import PLAIN, TEMPERATURES, measure_drafts
from selftrain.distill.pipeline import DRAFTS, DistillSpecConfig, _Stages
from selftrain.distill.summary import LABELS, result_rows

LAWS = {0.0: "greedy", 1.0: "T = 1"}
SCARCE = 0.05
COMPARISON_STEPS = 120
TEXTS = {"supervised": "corpus", "target_text": "target-written", "on_policy": "draft-written"}


@dataclass
class Args:
    """Command line."""

    quick: bool = False
    """A minute, to see that it runs."""
    seeds: int = 3
    """Number of seeds."""
    json: Path = ROOT / "benchmarks/results/distillspec.json"
    """Where the rows go."""
    work: Path = Path("runs/bench-distillspec")
    """Models and partial results; the same command continues there."""


class Comparison:
    """One seed: all drafts from one start."""

    def __init__(self, config: DistillSpecConfig, seed: int, work: Path) -> None:
        self.config = replace(config, seed=seed)
        self.folder = work / f"seed{seed}"
        self.folder.mkdir(parents=True, exist_ok=True)
        self.accelerator = Accelerator()
        # The target and the texts are those of seed 0 throughout.
        common = _Stages(config, work / "common", self.accelerator, True)
        self.data = prepare_data(config, work / "common", None)
        self.target = common.train_target(self.data).requires_grad_(False)
        self.stages = _Stages(self.config, self.folder, self.accelerator, True)
        self.common = work / "common"

    def rows(self) -> list[dict[str, Any]]:
        """Return the measurements of this seed, from disk where they were made before."""
        path = self.folder / "rows.json"
        if not path.exists():
            write_json(path, self._speed_rows() + self._comparison_rows())
        return read_json(path)

    def _speed_rows(self) -> list[dict[str, Any]]:
        self.drafts = self.stages.drafts(self.target, self.data)
        measured = measure_drafts(
            self.target,
            self.drafts,
            self.data.tokenizer,
            self.data.test_prompts,
            folder=self.folder,
            num_timed=self.config.num_prompts,
            num_draft_tokens=self.config.num_draft_tokens,
            max_new_tokens=self.config.max_new_tokens,
            seed=derive(self.config.seed, "measure"),
        )
        rows = [{"kind": "speed", "seed": self.config.seed, **row} for row in result_rows(measured)]
        return rows + self._peer_rows()

    def _peer_rows(self) -> list[dict[str, Any]]:
        """Time transformers' own greedy decoding, plain and assisted, beside ours."""
        draft = self.drafts["on_policy"]
        budget = self.config.max_new_tokens
        params = SamplingParams(max_new_tokens=budget, temperature=0)
        options = {"max_new_tokens": budget, "do_sample": False}
        ours = {
            k: SpeculativeDecoder(self.target, draft, num_draft_tokens=k)
            for k in (0, self.config.num_draft_tokens)
        }
        decoders = {
            "plain, transformers": lambda ids: self.target.generate(ids, **options),
            "assisted, transformers": lambda ids: self.target.generate(
                ids, assistant_model=draft, **options
            ),
            "plain, ours": lambda ids: ours[0].generate(ids, params=params).sequences,
            "speculative, ours": lambda ids: (
                ours[self.config.num_draft_tokens].generate(ids, params=params).sequences
            ),
        }
        tokens, seconds = dict.fromkeys(decoders, 0), dict.fromkeys(decoders, 0.0)
        for index, prompt in enumerate(self.data.test_prompts[: self.config.num_prompts]):
            ids = torch.tensor([prompt])
            for name, decode in decoders.items():
                begun = time.perf_counter()
                output = decode(ids)
                if index:  # the first prompt warms up
                    seconds[name] += time.perf_counter() - begun
                    tokens[name] += output.shape[1] - len(prompt)
        return [
            {
                "kind": "peer",
                "seed": self.config.seed,
                "decoder": name,
                "tokens_per_second": tokens[name] / seconds[name],
            }
            for name in decoders
        ]

    def _comparison_rows(self) -> list[dict[str, Any]]:
        """Sources of text, with all rows and few, at equal steps and at equal seconds."""
        rows = []
        steps = min(COMPARISON_STEPS, self.config.distillation.num_steps)
        for share in (1.0, SCARCE):
            on_policy = self._distil("on_policy", share, steps)
            rows.append(on_policy)
            for method in ("supervised", "target_text"):
                equal = self._distil(method, share, steps)
                fitting = round(steps * on_policy["seconds"] / equal["seconds"])
                rows += [equal, self._distil(method, share, fitting, budget="seconds")]
        return rows

    def _distil(
        self, method: str, share: float, num_steps: int, budget: str = "steps"
    ) -> dict[str, Any]:
        path = self.folder / f"{method}-{share}-{budget}.json"
        if path.exists():
            return read_json(path)
        rows, sampling_seconds = self._training_rows(method, share)
        name = "on_policy" if method == "on_policy" else "supervised"
        config = replace(
            self.config.for_draft(name), num_steps=num_steps, save_every=None, log_every=num_steps
        )
        start = self.stages._load(str(self.folder / "draft_start"))
        distiller = Distiller(start, self.target, self.data.tokenizer, config)
        begun = time.perf_counter()
        distiller.fit(rows, title=f"{method}, {share:.0%} of rows, equal {budget}")
        seconds = time.perf_counter() - begun
        seconds += sampling_seconds * num_steps * config.batch_size
        row = {
            "kind": "comparison",
            "seed": self.config.seed,
            "method": method,
            "share": share,
            "budget": budget,
            "steps": num_steps,
            "seconds": seconds,
            "num_scored_tokens": distiller.num_scored_tokens,
        }
        for temperature in TEMPERATURES:
            stats = measure_draft(
                self.target,
                distiller.student,
                self.data.test_prompts,
                num_draft_tokens=self.config.num_draft_tokens,
                params=SamplingParams(
                    max_new_tokens=self.config.max_new_tokens,
                    temperature=temperature,
                    seed=derive(self.config.seed, "stats"),
                ),
                batch_size=32,
            )
            row[f"block_efficiency {LAWS[temperature]}"] = stats.block_efficiency
            row[f"acceptance {LAWS[temperature]}"] = stats.acceptance_rate
        write_json(path, row)
        return row

    def _training_rows(self, method: str, share: float) -> tuple[list[dict[str, Any]], float]:
        """Return the rows to train on, and the seconds that sampling one text took beforehand."""
        rows = self.data.train_rows
        if share < 1:
            order = sorted(range(len(rows)), key=lambda i: derive(0, "scarce", i))
            rows = [rows[i] for i in order[: max(1, round(share * len(rows)))]]
        if method != "target_text":
            return rows, 0.0
        path = self.common / f"target_text-{share}.json"
        if not path.exists():
            num = COMPARISON_STEPS * self.config.distillation.batch_size // 2
            prompts = [rows[derive(1, "text", i) % len(rows)]["prompt_ids"] for i in range(num)]
            begun = time.perf_counter()
            texts = target_texts(
                self.target,
                prompts,
                params=self.config.distillation.sampling,
                seed=derive(0, "target text"),
                batch_size=64,
            )
            seconds = (time.perf_counter() - begun) / num
            written = [
                {"prompt_ids": p, "completion_ids": list(t)}
                for p, t in zip(prompts, texts, strict=True)
            ]
            write_json(path, {"seconds": seconds, "rows": written})
        saved = read_json(path)
        return saved["rows"], saved["seconds"]


def goals_of(rows: list[dict[str, Any]]) -> list[Goal]:
    """10 % over the undistilled draft (the paper: 10-45 %), and faster than plain decoding."""

    def mean_ratio(name: str, base: str, key: str, temperature: float) -> float:
        ratios = []
        for seed in {row["seed"] for row in rows}:
            of = {
                row["decoder"]: row
                for row in rows
                if row["kind"] == "speed"
                and row["seed"] == seed
                and row["temperature"] == temperature
            }
            ratios.append(of[name][key] / of[base][key])
        return sum(ratios) / len(ratios)

    goals = []
    for temperature, law in LAWS.items():
        for key in ("block_efficiency", "tokens_per_second"):
            ratio = mean_ratio("on_policy", "undistilled", key, temperature)
            goals.append(Goal(f"on-policy over undistilled, {key}, {law}", ratio, 1.10))
        ratio = mean_ratio("on_policy", PLAIN, "tokens_per_second", temperature)
        goals.append(Goal(f"on-policy draft over plain decoding, tokens/s, {law}", ratio, 1.0))
    return goals


def page(rows: list[dict[str, Any]], environment: dict[str, Any], config: DistillSpecConfig) -> str:
    """Return the tables for the docs."""

    def values(key: str, **match: Any) -> list[float]:
        return [
            row[key]
            for row in rows
            if all(row.get(k) == v for k, v in match.items()) and key in row
        ]

    speed = []
    for temperature, law in LAWS.items():
        for name in (PLAIN, *DRAFTS):
            match = {"kind": "speed", "decoder": name, "temperature": temperature}
            cells = [
                mean_and_spread(values(key, **match)) if values(key, **match) else "1"
                for key in ("acceptance_rate", "block_efficiency", "tokens_per_second", "speedup")
            ]
            cells[0] = "" if name == PLAIN else cells[0]
            predicted = mean_and_spread(values("predicted_tokens_per_second", **match))
            speed.append([law, LABELS[name], *cells, predicted])
    comparison = []
    for share in (1.0, SCARCE):
        for budget in ("steps", "seconds"):
            for method, text in TEXTS.items():
                match = {"kind": "comparison", "method": method, "share": share}
                match["budget"] = "steps" if method == "on_policy" else budget
                cells = [
                    mean_and_spread(values(f"block_efficiency {law}", **match))
                    for law in LAWS.values()
                ]
                steps = sum(values("steps", **match)) / max(1, len(values("steps", **match)))
                seconds = mean_and_spread(values("seconds", **match))
                comparison.append([f"{share:.0%}", budget, text, f"{steps:.0f}", seconds, *cells])
    peers = dict.fromkeys(row["decoder"] for row in rows if row["kind"] == "peer")
    peer_rows = [
        [name, mean_and_spread(values("tokens_per_second", kind="peer", decoder=name))]
        for name in peers
    ]
    seeds = len({row["seed"] for row in rows})
    return (
        "\n\n".join(
            [
                f"*{environment_line(environment)}; {seeds} seeds, mean ± standard deviation; "
                f"corpus `{config.dataset}`; command `python benchmarks/distillspec.py`.*",
                table(
                    [
                        "decoding",
                        "draft",
                        "acceptance",
                        "block efficiency",
                        "tokens/s",
                        "speed-up",
                        "predicted tokens/s",
                    ],
                    speed,
                ),
                "Block efficiency by the text that the draft is distilled on, with all training "
                "windows and with 5 % of them, at equal optimizer steps and at the seconds of the "
                "on-policy run (writing the text counted):",
                table(["windows", "equal", "text", "steps", "seconds", *LAWS.values()], comparison),
                "Greedy decoding of the same prompts beside transformers' own, with the on-policy "
                "draft and transformers' default number of draft tokens:",
                table(["decoder", "tokens/s"], peer_rows),
            ]
        )
        + "\n"
    )


def main(args: Args) -> None:
    config = DistillSpecConfig.quick() if args.quick else DistillSpecConfig()
    work, path = args.work, args.json
    if args.quick:
        work, path = work.with_name(work.name + "-quick"), work / "quick.json"
    rows = []
    for seed in range(1 if args.quick else args.seeds):
        rows += Comparison(config, seed, work).rows()
    goals = goals_of(rows)
    save_rows(path, rows, seed=0, goals=goals)
    text = page(rows, read_json(path)["environment"], config)
    if not args.quick:
        write_text(ROOT / "docs/tables/distillspec.md", text)
    print(text)
    for goal in goals:
        print(goal.line())


if __name__ == "__main__":
    main(tyro.cli(Args))
