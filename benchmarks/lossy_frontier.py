"""What lossy verification buys, what it costs, and whether simply sampling less does as well.

    python benchmarks/lossy_frontier.py                        # a random pair, no training
    python benchmarks/lossy_frontier.py --run runs/distillspec # what `selftrain distillspec` left
    python benchmarks/lossy_frontier.py --quick                # half a minute, no meaningful speeds

Every setting of every rule decodes the same prompts at T = 1. Quality is then exact, not judged:
the law that each emitted token was drawn from is known, so its total variation distance and its
divergence from the target's law are computed at every position of the decoded text, and averaged
(0 where the target itself drew the token). The target's log-likelihood of the text stands beside
them: sampling less raises it, though it moves away from the target; following the draft lowers it.

The baselines change no rule. They verify losslessly, and sample from a truncated or sharpened
target instead: what a lossy rule must beat.
"""

import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import tyro
from harness import ROOT, Goal, environment_line, save_rows, table
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

from selftrain import plots
from selftrain._core.io import read_json, write_text
from selftrain.bench.synthetic import synthetic_pair
from selftrain.decoding import HFSampler, SamplingParams, SpeculativeDecoder, SpeculativeOutput
from selftrain.decoding.law import warp
from selftrain.ops import (
    Lenience,
    LenienceRule,
    MixtureLenience,
    TypicalAcceptance,
    output_law,
    verify_lenient,
)

NUM_DRAFT_TOKENS = 4
START = "lossless"
MIXTURE = "mixture"
USUAL = "lenience p/ε"
LENIENT: dict[str, list[LenienceRule]] = {
    USUAL: [Lenience(epsilon=e) for e in (0.8, 0.6, 0.4, 0.2, 0.05)],
    "lenience p/ε, p - lq": [
        Lenience(epsilon=e, residual="p-lq") for e in (0.8, 0.6, 0.4, 0.2, 0.05)
    ],
    "lenience p^ε": [Lenience(kind="exponential", epsilon=e) for e in (0.9, 0.8, 0.65, 0.5, 0.3)],
    MIXTURE: [MixtureLenience(weight=w) for w in (0.1, 0.25, 0.5, 0.75, 0.95)],
    "typical acceptance": [
        TypicalAcceptance(epsilon=e, delta=e**0.5) for e in (0.3, 0.09, 0.03, 0.01, 0.001)
    ],
}
BASELINES: dict[str, list[dict[str, float]]] = {
    "top-p, lossless": [{"top_p": x} for x in (0.99, 0.97, 0.9, 0.8, 0.65)],
    "temperature, lossless": [{"temperature": x} for x in (0.95, 0.9, 0.8, 0.7, 0.55)],
}


@dataclass
class Args:
    """Command line."""

    quick: bool = False
    """Half a minute, to see that it runs."""
    run: Path | None = None
    """Folder with ``target/`` and ``draft/``; by default a random pair is made."""
    threads: int = 2
    """Torch's threads."""
    json: Path = ROOT / "benchmarks/results/lossy_frontier.json"
    """Where the rows go; the picture is put beside them."""


@dataclass(frozen=True)
class Setting:
    """One way to decode."""

    method: str
    name: str
    params: SamplingParams
    lenience: LenienceRule | None = None

    def decoder(self, target: PreTrainedModel, draft: PreTrainedModel) -> SpeculativeDecoder:
        """Return the decoder; by tokens throughout, since only a mixture has a rule by blocks."""
        return SpeculativeDecoder(
            target,
            draft,
            num_draft_tokens=NUM_DRAFT_TOKENS,
            verifier="token",
            lenience=self.lenience,
        )


def settings(max_new_tokens: int, quick: bool) -> Iterator[Setting]:
    params = SamplingParams(max_new_tokens=max_new_tokens, seed=1)
    step = 2 if quick else 1
    yield Setting(START, "", params)
    for method, rules in LENIENT.items():
        for rule in rules[::step]:
            yield Setting(method, _short(rule), params, rule)
    for method, laws in BASELINES.items():
        for law in laws[::step]:
            ((name, value),) = law.items()
            changed = SamplingParams(max_new_tokens=max_new_tokens, seed=1, **law)  # pyrefly: ignore
            yield Setting(method, f"{name} {value:g}", changed)


def _short(rule: LenienceRule) -> str:
    if isinstance(rule, MixtureLenience):
        return f"λ {rule.weight:g}"
    return f"ε {rule.epsilon:g}"  # pyrefly: ignore[missing-attribute]


def make_prompts(target: PreTrainedModel, num: int, length: int) -> Tensor:
    """Return prompts that the target itself wrote, after one random token."""
    first = torch.randint(
        3, target.config.vocab_size, (num,), generator=torch.Generator().manual_seed(0)
    )
    params = SamplingParams(max_new_tokens=length - 1, seed=2)
    sampler = HFSampler(target, None, batch_size=num)
    texts = sampler.sample([[t] for t in first.tolist()], num_samples=1, params=params)
    rows = [[t, *(c.token_ids or ())] for t, (c,) in zip(first.tolist(), texts, strict=True)]
    return torch.tensor([(row * length)[:length] for row in rows])  # a text that ended is repeated


# Quality ------------------------------------------------------------------------------------------


@torch.inference_mode()
def quality(
    setting: Setting,
    output: SpeculativeOutput,
    target: PreTrainedModel,
    draft: PreTrainedModel,
    prompt_length: int,
) -> dict[str, float]:
    """Return exact means over the positions of the decoded text."""
    num_rows, num_new = len(output.sequences), int(output.lengths.max())
    tested = torch.zeros(num_rows, num_new + NUM_DRAFT_TOKENS + 1, dtype=torch.bool)
    place = [0] * num_rows
    for block in output.blocks:
        start = place[block.row]
        tested[block.row, start : start + min(block.num_accepted + 1, len(block.drafted))] = True
        place[block.row] += block.num_accepted + 1
    parts = [
        _positions(setting, output.sequences[rows], tested[rows, :num_new], target, draft)
        for rows in torch.arange(num_rows).split(8)
    ]
    values = {key: torch.cat([part[key].flatten() for part in parts]) for key in parts[0]}
    found = {key: value.mean().item() for key, value in values.items()}
    # E [ 1(x in A) - p(A) | text before ] = TV for A = {v: law(v) > p(v)}: what the text says.
    found["seen_tv_error"] = (values["seen_tv"] - values["tv"]).std().item() / len(
        values["tv"]
    ) ** 0.5
    found["off_pareto"] = values["off_pareto"].abs().max().item()
    return found


def _positions(
    setting: Setting,
    sequences: Tensor,
    tested: Tensor,
    target: PreTrainedModel,
    draft: PreTrainedModel,
) -> dict[str, Tensor]:
    """Return what is known of every new position ``[row, time]``."""
    new = slice(sequences.shape[1] - tested.shape[1] - 1, -1)
    p_logits, q_logits = (m(input_ids=sequences).logits[:, new].double() for m in (target, draft))
    q_logits = q_logits[..., : p_logits.shape[-1]]
    token = sequences[:, -tested.shape[1] :].unsqueeze(-1)
    log_p = p_logits.log_softmax(-1)
    p, off_pareto = log_p.exp(), torch.zeros_like(tested, dtype=torch.float64)
    if setting.lenience is None:
        law = warp(p_logits, setting.params).softmax(-1)
    else:
        law = output_law(p_logits, q_logits, lenience=setting.lenience)
        law = torch.where(tested.unsqueeze(-1), law, p)
        acceptance, distortion = _reported(p_logits, q_logits, setting.lenience)
        overlap = torch.minimum(p, q_logits.softmax(-1)).sum(-1)
        off_pareto = distortion - (acceptance - overlap)
    excess = law - p
    more = excess > 0
    return {
        "tv": excess.clamp(min=0).sum(-1),
        "kl": (law * (law.clamp(min=1e-300).log() - log_p)).sum(-1),
        "log_likelihood": log_p.gather(-1, token).squeeze(-1),
        "seen_tv": more.gather(-1, token).squeeze(-1).double() - (p * more).sum(-1),
        "off_pareto": off_pareto,
    }


def _reported(p_logits: Tensor, q_logits: Tensor, lenience: LenienceRule) -> tuple[Tensor, Tensor]:
    """Return acceptance and distortion as the verifier reports them, at each position alone."""
    flat_p, flat_q = (x.flatten(0, 1).unsqueeze(1) for x in (p_logits, q_logits))
    noise = torch.zeros(len(flat_p), 2, dtype=torch.float64)
    verdict = verify_lenient(
        flat_p.expand(-1, 2, -1),
        flat_q,
        flat_q.argmax(-1),
        lenience=lenience,
        accept_uniforms=noise[:, :1],
        emit_uniforms=noise,
    )
    return verdict.overlap.view(p_logits.shape[:2]), verdict.distortion.view(p_logits.shape[:2])


# Speed --------------------------------------------------------------------------------------------


def measure(args: Args) -> list[dict[str, Any]]:
    target, draft = _pair(args)
    num_rows, num_new, num_timed = (16, 24, 1) if args.quick else (64, 64, 5)
    prompts = make_prompts(target, num_rows, length=8 if args.quick else 16)
    rows, decoders = [], {}
    for setting in settings(num_new, args.quick):
        decoders[setting] = decoder = setting.decoder(target, draft)
        output = decoder.generate(
            prompts, params=setting.params, eos_token_ids=(), return_blocks=True
        )
        rows.append(
            {
                "method": setting.method,
                "setting": setting.name,
                "acceptance": output.stats.acceptance_rate,
                "block_efficiency": output.stats.block_efficiency,
                "lossless": output.stats.lossless,
                **quality(setting, output, target, draft, prompts.shape[1]),
            }
        )
    seconds: dict[Setting, list[float]] = {setting: [] for setting in decoders}
    for index in range(num_timed + 1):  # settings take turns; the first prompt warms up
        prompt = prompts[index : index + 1]
        for setting, decoder in decoders.items():
            begun = time.perf_counter()
            decoder.generate(prompt, params=setting.params, eos_token_ids=())
            if index:
                seconds[setting].append(time.perf_counter() - begun)
    for row, taken in zip(rows, seconds.values(), strict=True):
        row["tokens_per_second"] = num_new / statistics.median(taken)
    return rows


def _pair(args: Args) -> tuple[PreTrainedModel, PreTrainedModel]:
    if args.run is None:
        return synthetic_pair("tiny" if args.quick else "small", corruption=0.35)
    folders = (args.run / "target", args.run / "draft")
    target, draft = (AutoModelForCausalLM.from_pretrained(f, dtype=torch.float32) for f in folders)
    return target.eval(), draft.eval()


# What it says -------------------------------------------------------------------------------------


def goals_of(rows: list[dict[str, Any]]) -> list[Goal]:
    def of(method: str) -> list[dict[str, Any]]:
        return [row for row in rows if row["method"] == method]

    def worst(rows: list[dict[str, Any]]) -> float:
        return max(row["off_pareto"] for row in rows)

    seen = max(
        abs(row["seen_tv"] - row["tv"]) / row["seen_tv_error"]
        for method in LENIENT
        for row in of(method)
    )
    gain = of(MIXTURE)[-1]["block_efficiency"] / of(START)[0]["block_efficiency"]
    return [
        Goal(f"farthest from the Pareto line, {USUAL}", worst(of(USUAL)), 1e-9, at_least=False),
        Goal("farthest from the Pareto line, mixture", worst(of(MIXTURE)), 1e-9, at_least=False),
        Goal("TV of the text over what was computed, worst z", seen, 4.0, at_least=False),
        Goal("tokens per target call, most of the mixture over lossless", gain, 1.1),
    ]


def page(rows: list[dict[str, Any]]) -> str:
    """Return the table for the docs."""
    likelihood = rows[0]["log_likelihood"]
    lines = [
        [
            row["method"],
            row["setting"],
            f"{row['tv']:.3f}",
            f"{row['seen_tv']:.3f} ± {row['seen_tv_error']:.3f}",
            f"{row['kl']:.3f}",
            f"{row['log_likelihood'] - likelihood:+.2f}",
            f"{row['acceptance']:.3f}",
            f"{row['block_efficiency']:.2f}",
            f"{row['tokens_per_second'] / rows[0]['tokens_per_second']:.2f}",
        ]
        for row in rows
    ]
    heads = ["rule", "setting", "TV", "TV seen in the text", "KL", "log-likelihood"]
    return table([*heads, "acceptance", "tokens per call", "speed"], lines)


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    """Draw tokens per call over TV, and speed over the target's log-likelihood."""
    first, left_right = rows[0], plots.panels(2, width=6.4, height=4.4)

    def curves(x: str, y: str) -> dict[str, tuple[list[float], list[float]]]:
        return {
            method: tuple([row[k] for row in rows if row["method"] == method] for k in (x, y))
            for method in (*LENIENT, *BASELINES)
        }

    for ax, (x, xlabel), (y, ylabel), title in zip(
        left_right,
        (
            ("tv", "TV distance to the target's law, mean per token"),
            ("log_likelihood", "target's log-likelihood of the text, nats per token"),
        ),
        (("block_efficiency", "tokens per target call"), ("tokens_per_second", "tokens/s")),
        ("What a token's law strays", "What the target thinks of the text"),
        strict=True,
    ):
        plots.frontier(
            curves(x, y),
            xlabel=xlabel,
            ylabel=ylabel,
            baselines=tuple(BASELINES),
            start=(START, first[x], first[y]),
            title=title,
            ax=ax,
        )
    plots.save_figure(left_right, path)


def main(args: Args) -> None:
    torch.set_num_threads(args.threads)
    path = args.json
    if args.quick and path == Args.json:
        path = Path("runs/bench-lossy-frontier-quick/lossy_frontier.json")
    rows = measure(args)
    goals = goals_of(rows)
    save_rows(path, rows, seed=1, goals=goals)
    draw(rows, path.with_suffix(".png"))
    where = environment_line(read_json(path)["environment"])
    pair = "a random pair" if args.run is None else "a trained pair"
    text = f"*{pair}, {NUM_DRAFT_TOKENS} draft tokens, T = 1; {where}.*\n\n{page(rows)}\n"
    if not args.quick:
        write_text(ROOT / "docs/tables/lossy_frontier.md", text)
    print(text)
    for goal in goals:
        print(goal.line())


if __name__ == "__main__":
    main(tyro.cli(Args))
