"""The report of a DistillSpec run: plots, tables, one decoded sample."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from selftrain import plots
from selftrain._core.io import read_json, write_json
from selftrain._core.trace import TokenStatus
from selftrain.distill.data import PromptData
from selftrain.distill.measure import PLAIN, TEMPERATURES, Measurements
from selftrain.report import Block, Heading, Image, Table, Text, Trace, write_report

if TYPE_CHECKING:
    from selftrain.distill.pipeline import DistillSpecConfig

LABELS = {
    PLAIN: "plain",
    "undistilled": "undistilled",
    "supervised": "supervised KD",
    "on_policy": "on-policy KD",
}
_LAWS = {0.0: "greedy", 1.0: "T = 1"}


def write_summary(
    config: "DistillSpecConfig",
    folder: Path,
    metrics: Sequence[Mapping[str, Any]],
    measurements: Measurements,
    *,
    target: PreTrainedModel,
    drafts: Mapping[str, PreTrainedModel],
    data: PromptData,
) -> Path:
    """Write ``results.json``, the plots, ``report.md`` and ``report.html``; return the last."""
    results = result_rows(measurements)
    write_json(folder / "results.json", results)
    pictures = folder / "plots"
    pictures.mkdir(exist_ok=True)
    trace = sample_trace(measurements, data.tokenizer)
    _draw(pictures, metrics, measurements, trace)
    manifest = read_json(folder / "manifest.json")
    sizes = {"target": target, **drafts}
    blocks: list[Block] = [
        Text(_headline(measurements)),
        _results_table(results, measurements),
        Image(
            "plots/speed.png",
            "Tokens per second by decoder",
            "Decoding speed on held-out prompts, one at a time, prefill included. Whiskers: "
            "quartiles over prompts. Diamonds: the cost model, from timed forwards and "
            "teacher-forced acceptance on target-written text; it has seen none of the bars.",
        ),
        Heading("How good is the draft?"),
        Image("plots/acceptance.png", "Acceptance by draft", _ACCEPTANCE_CAPTION),
        Image("plots/block_efficiency.png", "Block efficiency by draft", _EFFICIENCY_CAPTION),
        _quality_table(results),
        Heading("One decoded sample"),
        Trace(*trace, "The continuation of a held-out prompt at T = 1 with the on-policy draft."),
        Heading("Training"),
        Image("plots/loss.png", "Training losses", _LOSS_CAPTION),
        _training_table(config, metrics, sizes),
        Heading("What it cost to draft and verify"),
        _cost_table(measurements),
        Heading("Use the draft"),
        Text(_usage(folder)),
        Heading("How this was made"),
        Text(_provenance(config, data, manifest)),
    ]
    return write_report(folder, "DistillSpec: a draft distilled from its target", blocks)


_ACCEPTANCE_CAPTION = (
    "The probability that a drafted token is accepted, over all held-out prompts (accepted over "
    "tested tokens)."
)
_LOSS_CAPTION = (
    "Left: next-token losses; the undistilled draft goes on where the common start ends. Right: "
    "the divergences that distillation minimises from the same start, on different texts, so that "
    "their heights are not comparable."
)
_EFFICIENCY_CAPTION = "Mean tokens per target call; plain decoding makes one."


def result_rows(measurements: Measurements) -> list[dict[str, Any]]:
    """Return one row of plain numbers per decoder and temperature."""
    rows = []
    for (name, temperature), speed in measurements.speeds.items():
        row: dict[str, Any] = {
            "decoder": name,
            "temperature": temperature,
            "tokens_per_second": speed.tokens_per_second,
            "predicted_tokens_per_second": speed.predicted,
            "speedup": speed.speedup,
            "speedup_quartiles": [speed.low, speed.high],
            "identical_to_plain": speed.num_identical,
            "prompts": speed.num_prompts,
        }
        quality = measurements.qualities.get((name, temperature))
        if quality is not None:
            row |= {
                "acceptance_rate": quality.stats.acceptance_rate,
                "analytic_acceptance": quality.stats.analytic_acceptance,
                "accepted_fraction": quality.stats.accepted_fraction,
                "block_efficiency": quality.stats.block_efficiency,
                "predicted_block_efficiency": quality.predicted_block_efficiency,
                "independent_block_efficiency": quality.independent_block_efficiency,
            }
        rows.append(row)
    return rows


def sample_trace(
    measurements: Measurements, tokenizer: PreTrainedTokenizerBase
) -> tuple[list[str], list[TokenStatus]]:
    """Return the tokens of the sample and where each came from; a rejected one is shown once."""
    ids: list[int] = list(measurements.sample_prompt)
    status: list[TokenStatus] = ["prompt" for _ in ids]
    for block in measurements.sample.blocks:
        accepted = block.drafted[: block.num_accepted]
        ids += accepted
        status.extend("accepted" for _ in accepted)
        if block.num_accepted < len(block.drafted):
            ids.append(block.drafted[block.num_accepted])
            status.append("rejected")
        ids.append(block.next_token)
        status.append("target")
    return [str(tokenizer.decode([i])) for i in ids], status


def _headline(measurements: Measurements) -> str:
    def gain(name: str, over: str, temperature: float) -> float:
        speeds = measurements.speeds
        mine = speeds[name, temperature].tokens_per_second
        return mine / speeds[over, temperature].tokens_per_second

    parts = [
        f"**{_LAWS[t]}**: {gain('on_policy', PLAIN, t):.2f}x plain decoding, "
        f"{gain('on_policy', 'undistilled', t):.2f}x the same draft without distillation"
        for t in TEMPERATURES
    ]
    greedy = [measurements.speeds[name, 0.0] for name in LABELS if name != PLAIN]
    identical = sum(s.num_identical for s in greedy)
    return (
        "Speculative decoding with the draft that was distilled on its own text: "
        + "; ".join(parts)
        + ". The output law is the target's own; greedy outputs were identical to plain decoding "
        f"on {identical} of {sum(s.num_prompts for s in greedy)} prompts."
    )


def _results_table(results: Sequence[Mapping[str, Any]], measurements: Measurements) -> Table:
    rows = []
    for row in results:
        plain = row["decoder"] == PLAIN
        rows.append(
            [
                _LAWS[row["temperature"]],
                LABELS[row["decoder"]],
                f"{row['tokens_per_second']:.0f}",
                f"{row['predicted_tokens_per_second']:.0f}",
                "1" if plain else f"{row['speedup']:.2f}",
                None if plain else f"{row['block_efficiency']:.2f}",
            ]
        )
    drafted = measurements.costs[0.0].num_draft_tokens
    return Table(
        ["decoding", "draft", "tokens/s", "predicted", "speed-up", "tokens per target call"],
        rows,
        f"{drafted} draft tokens per block. Speed-ups are over plain decoding by the same engine.",
    )


def _quality_table(results: Sequence[Mapping[str, Any]]) -> Table:
    rows = [
        [
            _LAWS[row["temperature"]],
            LABELS[row["decoder"]],
            f"{row['acceptance_rate']:.3f}",
            f"{row['analytic_acceptance']:.3f}",
            f"{row['accepted_fraction']:.3f}",
            f"{row['block_efficiency']:.3f}",
            f"{row['predicted_block_efficiency']:.3f}",
            f"{row['independent_block_efficiency']:.3f}",
        ]
        for row in results
        if row["decoder"] != PLAIN
    ]
    return Table(
        [
            "decoding",
            "draft",
            "accepted / tested",
            "mean overlap",
            "accepted / drafted",
            "block efficiency",
            "predicted",
            "if independent",
        ],
        rows,
        "Three acceptance numbers that are not the same: the share of tested tokens that stood, "
        "its expectation (the overlap of both laws), and the share of all drafted tokens. "
        "Predicted: from texts of the target without decoding; if independent: from the mean "
        "overlap alone.",
    )


def _training_table(
    config: "DistillSpecConfig",
    metrics: Sequence[Mapping[str, Any]],
    models: Mapping[str, PreTrainedModel],
) -> Table:
    rows = []
    for stage in dict.fromkeys(row["stage"] for row in metrics):
        mine = [row for row in metrics if row["stage"] == stage]
        rates = sorted(row["tokens_per_second"] for row in mine)
        model = models.get(stage, models["on_policy"])
        rows.append(
            [
                stage.replace("_", " "),
                f"{sum(p.numel() for p in model.parameters()) / 1e6:.2f} M",
                f"{mine[-1]['step'] + 1}",
                f"{mine[-1]['loss']:.3f}",
                _number(next((r["eval/loss"] for r in reversed(mine) if "eval/loss" in r), None)),
                _number(mine[-1].get("acceptance")),
                f"{rates[len(rates) // 2]:.0f}",
            ]
        )
    return Table(
        ["stage", "parameters", "steps", "last loss", "validation", "overlap", "tokens/s"],
        rows,
        "Overlap: sum of min(p, q) on the stage's own training text, in its last step; tokens/s: "
        "scored tokens, median over logged steps.",
    )


def _cost_table(measurements: Measurements) -> Table:
    rows = []
    for temperature, costs in measurements.costs.items():
        rows.append(
            [
                _LAWS[temperature],
                f"{costs.target_one:.2f}",
                f"{costs.target_block:.2f}",
                f"{costs.draft_step:.2f}",
                f"{costs.verify:.2f}",
            ]
        )
    block = measurements.costs[0.0].num_draft_tokens + 1
    columns = ["decoding", "target, 1 token", f"target, {block} tokens", "draft step", "verify"]
    return Table(columns, rows, "Milliseconds, median of 30, one row, half-way through a text.")


def _usage(folder: Path) -> str:
    return (
        f"The distilled draft lies in `{folder.as_posix()}/draft`, the target in "
        f"`{folder.as_posix()}/target` (or where you named it); both load in plain "
        "transformers:\n\n"
        "```python\n"
        "from transformers import AutoModelForCausalLM, AutoTokenizer\n"
        "from selftrain import SamplingParams, SpeculativeDecoder\n\n"
        f'target = AutoModelForCausalLM.from_pretrained("{folder.as_posix()}/target")\n'
        f'draft = AutoModelForCausalLM.from_pretrained("{folder.as_posix()}/draft")\n'
        f'tokenizer = AutoTokenizer.from_pretrained("{folder.as_posix()}/draft")\n'
        'ids = tokenizer("def main(", return_tensors="pt").input_ids\n'
        "output = SpeculativeDecoder(target, draft).generate(\n"
        "    ids, params=SamplingParams(max_new_tokens=64)\n"
        ")\n"
        "print(tokenizer.decode(output.sequences[0]))\n\n"
        "target.generate(ids, assistant_model=draft)  # transformers' own\n"
        "```"
    )


def _provenance(config: "DistillSpecConfig", data: PromptData, manifest: Mapping[str, Any]) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in manifest["versions"].items())
    return (
        f"- Text: `{config.dataset}`, {data.num_documents} documents, "
        f"{data.num_characters / 1e6:.1f} M characters; documents are split into train, validation "
        "and test by a hash of their text, and prompts come from test documents only.\n"
        f"- Command: `{' '.join(manifest['command'])}`; seed {config.seed}; all settings are in "
        "`config.json`, all numbers in `results.json`, `measurements.jsonl` and `metrics.jsonl`.\n"
        f"- Machine: {manifest['gpu'] or manifest['cpu']}, {manifest['num_threads']} threads, "
        f"Python {manifest['python']}; {versions}."
    )


def _draw(
    pictures: Path,
    metrics: Sequence[Mapping[str, Any]],
    measurements: Measurements,
    trace: tuple[list[str], list[TokenStatus]],
) -> None:
    _draw_losses(pictures / "loss.png", metrics)
    drafts = [name for name in LABELS if name != PLAIN]
    groups = [_LAWS[t] for t in TEMPERATURES]
    labels = [LABELS[name] for name in drafts]
    qualities = [[measurements.qualities[name, t] for t in TEMPERATURES] for name in drafts]
    plots.save_figure(
        plots.grouped_bars(
            groups,
            labels,
            [[q.stats.acceptance_rate for q in row] for row in qualities],
            ylabel="acceptance",
            title="Acceptance of drafted tokens",
        ),
        pictures / "acceptance.png",
    )
    plots.save_figure(
        plots.grouped_bars(
            groups,
            labels,
            [[q.stats.block_efficiency for q in row] for row in qualities],
            ylabel="tokens per target call",
            title="Block efficiency",
            reference=("plain decoding", 1.0),
        ),
        pictures / "block_efficiency.png",
    )
    _draw_speeds(pictures / "speed.png", measurements)
    plots.save_figure(
        plots.token_trace(*trace, title="A sample at T = 1, on-policy draft"),
        pictures / "sample.png",
    )


def _draw_losses(path: Path, metrics: Sequence[Mapping[str, Any]]) -> None:
    names = {"target": "target", "draft_start": "draft, common start", **LABELS}

    def curves(stages: Sequence[str]) -> dict[str, tuple[list[float], list[float]]]:
        found = {}
        for stage in stages:
            mine = [row for row in metrics if row["stage"] == stage]
            if mine:
                found[names[stage]] = [r["step"] for r in mine], [r["loss"] for r in mine]
        return found

    axes = plots.panels(2)
    plots.loss_curves(
        curves(("target", "draft_start", "undistilled")),
        ylabel="next-token loss (nats)",
        title="On the corpus",
        smoothing=0.7,
        ax=axes[0],
    )
    plots.loss_curves(
        curves(("supervised", "on_policy")),
        ylabel="divergence from the target (nats)",
        title="Distillation, each on its own text",
        smoothing=0.7,
        ax=axes[1],
    )
    plots.save_figure(axes, path)


def _draw_speeds(path: Path, measurements: Measurements) -> None:
    axes = plots.panels(len(TEMPERATURES))
    for ax, temperature in zip(axes, TEMPERATURES, strict=True):
        speeds = [measurements.speeds[name, temperature] for name in LABELS]
        plain = speeds[0].tokens_per_second
        plots.measured_and_predicted(
            list(LABELS.values()),
            [s.tokens_per_second for s in speeds],
            [s.predicted for s in speeds],
            errors=[(s.high - s.low) / 2 * plain for s in speeds],
            ylabel="tokens / s",
            title=f"Decoding speed, {_LAWS[temperature]}",
            reference=("plain decoding", plain),
            ax=ax,
        )
    plots.save_figure(axes, path)


def _number(value: float | None) -> str | None:
    return None if value is None else f"{value:.3f}"
