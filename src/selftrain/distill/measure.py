"""Decode held-out prompts plainly and with several drafts, side by side."""

import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from selftrain._core.io import append_jsonl, read_jsonl
from selftrain._core.logging import progress
from selftrain._core.rng import derive
from selftrain.decoding.cost_model import expected_tokens, predict_block_efficiency
from selftrain.decoding.outcome import SpeculativeOutput, SpeculativeStats
from selftrain.decoding.params import SamplingParams
from selftrain.decoding.planner import Costs, measure_costs
from selftrain.decoding.speculative import SpeculativeDecoder
from selftrain.distill.drafts import forced_acceptance, measure_draft, target_texts

PLAIN = "plain"
TEMPERATURES = (0.0, 1.0)


@dataclass(frozen=True, kw_only=True, slots=True)
class Speed:
    """How fast one decoder was on the timed prompts."""

    tokens_per_second: float
    """All tokens over all seconds, prefill included."""
    speedup: float
    """Over plain decoding of the same prompts in the same run."""
    low: float
    """The lower quartile over prompts of the speed-up."""
    high: float
    """The upper quartile over prompts of the speed-up."""
    num_identical: int
    """Prompts whose tokens equal plain decoding's: all of them, when greedy and free of ties."""
    num_prompts: int
    predicted: float
    """Tokens per second that the cost model predicts from target-written text."""


@dataclass(frozen=True, kw_only=True, slots=True)
class MeasuredDraft:
    """How well one draft fits the target."""

    stats: SpeculativeStats
    predicted_block_efficiency: float
    """From teacher-forced acceptance on target-written text, by the renewal recursion."""
    independent_block_efficiency: float
    """From the mean acceptance, as if acceptances were independent."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Measurements:
    """All numbers of a run, by decoder and temperature."""

    speeds: Mapping[tuple[str, float], Speed]
    qualities: Mapping[tuple[str, float], MeasuredDraft]
    costs: Mapping[float, Costs]
    sample: SpeculativeOutput
    """One sampled continuation of the first prompt, with its blocks."""
    sample_prompt: Sequence[int]


def measure_drafts(
    target: PreTrainedModel,
    drafts: Mapping[str, PreTrainedModel],
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Sequence[int]],
    *,
    folder: Path,
    num_timed: int,
    num_draft_tokens: int,
    max_new_tokens: int,
    seed: int,
    show_progress: bool = True,
) -> Measurements:
    """Measure speed on ``num_timed`` prompts and acceptance on all of them, greedy and at T=1.

    The decoders take turns on every prompt, so that a machine whose speed drifts favours none.
    Timed rows go to ``measurements.jsonl`` as they come; those found there are not done again.
    """
    timer = _Timer(target, drafts, tokenizer, num_draft_tokens, max_new_tokens, seed)
    rows = timer.rows(prompts[:num_timed], folder / "measurements.jsonl", show_progress)
    last = list(drafts)[-1]
    context = len(prompts[0]) + max_new_tokens // 2
    costs, qualities, speeds = {}, {}, {}
    with progress(
        "acceptance and cost", len(TEMPERATURES) * (len(drafts) + 1), show=show_progress
    ) as bar:
        done = 0
        for temperature in TEMPERATURES:
            params = timer.params(temperature, None)
            costs[temperature] = measure_costs(
                target,
                drafts[last],
                context=context,
                num_draft_tokens=num_draft_tokens,
                params=params,
            )
            texts = target_texts(target, prompts, params=params, seed=derive(seed, "texts"))
            bar.update(done := done + 1)
            for name, draft in drafts.items():
                qualities[name, temperature] = _quality(
                    target,
                    draft,
                    tokenizer,
                    prompts,
                    texts,
                    params,
                    num_draft_tokens,
                    derive(seed, "stats"),
                )
                bar.update(done := done + 1)
    for temperature in TEMPERATURES:
        for name in (PLAIN, *drafts):
            quality = qualities.get((name, temperature))
            speeds[name, temperature] = _speed(rows, name, temperature, costs[temperature], quality)
    sample = timer.decode(last, prompts[0], 1.0, 0, return_blocks=True)
    return Measurements(
        speeds=speeds,
        qualities=qualities,
        costs=costs,
        sample=sample,
        sample_prompt=list(prompts[0]),
    )


class _Timer:
    def __init__(
        self,
        target: PreTrainedModel,
        drafts: Mapping[str, PreTrainedModel],
        tokenizer: PreTrainedTokenizerBase,
        num_draft_tokens: int,
        max_new_tokens: int,
        seed: int,
    ) -> None:
        def decoder(draft: PreTrainedModel, num: int) -> SpeculativeDecoder:
            return SpeculativeDecoder(target, draft, tokenizer=tokenizer, num_draft_tokens=num)

        self.decoders = {PLAIN: decoder(next(iter(drafts.values())), 0)}
        self.decoders |= {name: decoder(d, num_draft_tokens) for name, d in drafts.items()}
        self.device, self.seed, self.max_new_tokens = target.device, seed, max_new_tokens

    def params(self, temperature: float, seed: int | None) -> SamplingParams:
        return SamplingParams(
            max_new_tokens=self.max_new_tokens, temperature=temperature, seed=seed
        )

    def decode(
        self,
        name: str,
        prompt: Sequence[int],
        temperature: float,
        index: int,
        *,
        return_blocks: bool = False,
    ) -> SpeculativeOutput:
        params = self.params(temperature, derive(self.seed, "prompt", index))
        ids = torch.tensor([list(prompt)], device=self.device)
        return self.decoders[name].generate(ids, params=params, return_blocks=return_blocks)

    def rows(
        self, prompts: Sequence[Sequence[int]], path: Path, show: bool
    ) -> list[dict[str, Any]]:
        rows = read_jsonl(path)
        done = {(row["prompt"], row["temperature"], row["decoder"]) for row in rows}
        names = list(self.decoders)
        total = len(prompts) * len(TEMPERATURES) * len(names)
        if len(done) < total:
            for name in names:  # first calls pay for allocation
                self.decode(name, prompts[0], 1.0, 0)
        with progress("decode held-out prompts", total, done=len(rows), show=show) as bar:
            for index, prompt in enumerate(prompts):
                for temperature in TEMPERATURES:
                    turn = index % len(names)
                    for name in names[turn:] + names[:turn]:
                        if (index, temperature, name) not in done:
                            row = self._timed(name, prompt, temperature, index)
                            append_jsonl(path, row)
                            rows.append(row)
                            bar.update(len(rows))
        return rows

    def _timed(
        self, name: str, prompt: Sequence[int], temperature: float, index: int
    ) -> dict[str, Any]:
        self._synchronize()
        start = time.perf_counter()
        output = self.decode(name, prompt, temperature, index)
        self._synchronize()
        seconds = time.perf_counter() - start
        return {
            "prompt": index,
            "temperature": temperature,
            "decoder": name,
            "seconds": seconds,
            "token_ids": output.new_tokens()[0],
            "stats": asdict(output.stats),
        }

    def _synchronize(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()


def _quality(
    target: PreTrainedModel,
    draft: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Sequence[int]],
    texts: Sequence[Sequence[int]],
    params: SamplingParams,
    num_draft_tokens: int,
    seed: int,
) -> MeasuredDraft:
    stats = measure_draft(
        target,
        draft,
        prompts,
        num_draft_tokens=num_draft_tokens,
        params=SamplingParams(
            max_new_tokens=params.max_new_tokens, temperature=params.temperature, seed=seed
        ),
        tokenizer=tokenizer,
        batch_size=32,
    )
    forced = forced_acceptance(target, draft, prompts, texts, params=params)
    return MeasuredDraft(
        stats=stats,
        predicted_block_efficiency=predict_block_efficiency(forced, num_draft_tokens),
        independent_block_efficiency=expected_tokens(
            min(1.0, stats.analytic_acceptance), num_draft_tokens
        ),
    )


def _speed(
    rows: Sequence[dict[str, Any]],
    name: str,
    temperature: float,
    costs: Costs,
    quality: MeasuredDraft | None,
) -> Speed:
    mine, plain = (
        {r["prompt"]: r for r in rows if r["decoder"] == n and r["temperature"] == temperature}
        for n in (name, PLAIN)
    )

    def rate(row: dict[str, Any]) -> float:
        return len(row["token_ids"]) / row["seconds"]

    def total_rate(of: dict[int, dict[str, Any]]) -> float:
        return sum(len(r["token_ids"]) for r in of.values()) / sum(
            r["seconds"] for r in of.values()
        )

    gains = [rate(mine[i]) / rate(plain[i]) for i in mine]
    quartiles = statistics.quantiles(gains, n=4) if len(gains) > 1 else [gains[0]] * 3
    if quality is None:
        predicted = costs.plain_tokens_per_second()
    else:
        predicted = costs.tokens_per_second(quality.predicted_block_efficiency)
    return Speed(
        tokens_per_second=total_rate(mine),
        speedup=total_rate(mine) / total_rate(plain),
        low=quartiles[0],
        high=quartiles[2],
        num_identical=sum(mine[i]["token_ids"] == plain[i]["token_ids"] for i in mine),
        num_prompts=len(mine),
        predicted=predicted,
    )
