"""Which verifiers and engines are exact? The proof kit on ours and on transformers' own.

    python benchmarks/prove_exactness.py            # about five minutes on two cores
    python benchmarks/prove_exactness.py --quick    # half a minute; shorter walks, fewer texts

Four tables: rules of verification, enumerated over tabular models; noise, keyed in several ways;
mistakes, all of which the kit must detect; and whole engines, ours and assisted generation of the
installed transformers, each against its own plain decoding. A case that raises is a result too.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from textwrap import shorten
from typing import Any

import torch
import transformers
import tyro
from harness import ROOT, Goal, environment_line, save_rows, table
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from transformers.generation.utils import _speculative_sampling

from selftrain._core.io import read_json, write_text
from selftrain._core.rng import seeded_torch
from selftrain.decoding import SamplingParams, SpeculativeDecoder
from selftrain.decoding.proof import (
    FAULTY_KEYINGS,
    Keying,
    Proof,
    all_texts,
    compare_counts,
    count_texts,
    default_scenarios,
    faults,
    foreign,
    measure_reuse,
    prove,
    prove_coupled,
)
from selftrain.ops import verify_block, verify_coupled, verify_greedy, verify_tokens

PEER = f"transformers {transformers.__version__}"
NUM_DRAFT_TOKENS = 3


@dataclass
class Args:
    """Command line."""

    quick: bool = False
    """Half a minute, to see that it runs."""
    json: Path = ROOT / "benchmarks/results/exactness.json"
    """Where the rows go."""


# Rules, noise, mistakes ---------------------------------------------------------------------------


def rule_rows() -> list[dict[str, Any]]:
    """Enumerate every rule in every scenario."""

    def greedy(target_logits: Tensor, draft_logits: Any, tokens: Tensor, **noise: Tensor) -> Any:
        return verify_greedy(target_logits, tokens)

    def helper(target_logits: Tensor, draft_logits: Tensor, tokens: Tensor) -> Tensor:
        return _speculative_sampling(tokens, draft_logits, tokens.shape[1], target_logits)[0]

    proofs: dict[str, Callable[[], Proof]] = {
        "token": lambda: prove(verify_tokens),
        "block": lambda: prove(verify_block),
        "coupled": lambda: prove_coupled(verify_coupled),
        "greedy": lambda: prove(greedy, scenarios=default_scenarios(temperature=0.0)),
        PEER: lambda: prove(foreign(helper)),
    }
    return [
        {
            "kind": "rule",
            "rule": rule,
            "case": case.name,
            "passed": case.passed,
            "deviation": case.deviation,
            "problem": case.problem,
        }
        for rule, run in proofs.items()
        for case in run().cases
    ]


def noise_rows(quick: bool) -> list[dict[str, Any]]:
    """Decode long texts with every keying."""
    size = {"num_rows": 1024, "num_tokens": 96} if quick else {}
    rows = []
    for rule, verifier in (("token", verify_tokens), ("block", verify_block)):
        for name, keying in {"fresh in each block": Keying(), **FAULTY_KEYINGS}.items():
            reuse = measure_reuse(verifier, keying=keying, **size)
            rows.append(
                {
                    "kind": "noise",
                    "rule": rule,
                    "keying": name,
                    "law": list(reuse.law),
                    "tokens_per_block": reuse.tokens_per_block,
                    "total_variation": reuse.tokens.total_variation,
                    "sigmas": reuse.sigmas,
                }
            )
    return rows


def control_rows() -> list[dict[str, Any]]:
    """Try every mistake."""
    rows = []
    for name, fault in faults().items():
        proof = prove(fault.verifier, scenarios=fault.scenarios)
        rows.append(
            {
                "kind": "control",
                "fault": name,
                "detected": not proof.passed,
                "deviation": max(case.deviation for case in proof.cases),
                "problem": proof.failures[0].problem if proof.failures else "",
            }
        )
    return rows


# Engines ------------------------------------------------------------------------------------------


def make_model(vocab_size: int, seed: int, num_layers: int = 2) -> LlamaForCausalLM:
    """Return a tiny float64 Llama whose laws are neither flat nor certain."""
    config = LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=num_layers,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=128,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=0,
    )
    with seeded_torch(seed):
        model = LlamaForCausalLM(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(4.0)
    return model.double().eval()


def make_tokenizer() -> PreTrainedTokenizerFast:
    """Return a tokenizer of sixteen letters, one a token."""
    tokenizer = Tokenizer(models.WordLevel({c: i for i, c in enumerate("abcdefghijklmnop")}))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="a")


class Assisted:
    """Assisted generation of transformers, with a fixed number of draft tokens."""

    name = PEER

    def __init__(self, target: LlamaForCausalLM, draft: LlamaForCausalLM, tokenizer: Any) -> None:
        self.target, self.draft, self.tokenizer = target, draft, tokenizer
        draft.generation_config.update(
            num_assistant_tokens=NUM_DRAFT_TOKENS,
            num_assistant_tokens_schedule="constant",
            assistant_confidence_threshold=0.0,
        )

    def decode(
        self,
        ids: Tensor,
        length: int,
        *,
        speculative: bool = True,
        sample: bool = False,
        eos: int | None = None,
        stop: str | None = None,
        mask: Tensor | None = None,
        **options: Any,
    ) -> list[list[int]]:
        """Return each row's new tokens, without the padding behind an end."""
        if speculative:
            options["assistant_model"] = self.draft
        if stop:
            options |= {"stop_strings": [stop], "tokenizer": self.tokenizer}
        output = self.target.generate(
            ids,
            attention_mask=torch.ones_like(ids) if mask is None else mask,
            max_new_tokens=length,
            do_sample=sample,
            top_k=0,
            eos_token_id=eos,
            pad_token_id=0,
            **options,
        )
        return output[:, ids.shape[1] :].tolist()

    def sample_texts(self, ids: Tensor, length: int, num: int) -> Tensor:
        """Return ``num`` sampled texts."""
        with seeded_torch(0):
            texts = [self.decode(ids, length, sample=True)[0] for _ in range(num)]
        return torch.tensor(texts)

    def static(self, ids: Tensor, length: int) -> list[list[int]]:
        """Decode with a cache of fixed shapes."""
        return self.decode(ids, length, cache_implementation="static")


class Ours:
    """Our decoder."""

    name = "ours"

    def __init__(self, target: LlamaForCausalLM, draft: LlamaForCausalLM, tokenizer: Any) -> None:
        self.decoders = {
            speculative: SpeculativeDecoder(target, draft, tokenizer=tokenizer, num_draft_tokens=k)
            for speculative, k in ((True, NUM_DRAFT_TOKENS), (False, 0))
        }

    def decode(
        self,
        ids: Tensor,
        length: int,
        *,
        speculative: bool = True,
        eos: int | None = None,
        stop: str | None = None,
        mask: Tensor | None = None,
    ) -> list[list[int]]:
        """Return each row's new tokens."""
        output = self.decoders[speculative].generate(
            ids,
            attention_mask=mask,
            params=SamplingParams(
                max_new_tokens=length, temperature=0, stop=(stop,) if stop else ()
            ),
            eos_token_ids=() if eos is None else eos,
        )
        return output.new_tokens()

    def sample_texts(self, ids: Tensor, length: int, num: int) -> Tensor:
        """Return ``num`` sampled texts."""
        params = SamplingParams(max_new_tokens=length, seed=0)
        output = self.decoders[True].generate(ids.expand(num, -1), params=params, eos_token_ids=())
        return output.sequences[:, ids.shape[1] :]

    def static(self, ids: Tensor, length: int) -> list[list[int]]:
        """Decode with a cache of fixed shapes; ours has no other."""
        return self.decode(ids, length)


def engine_rows(quick: bool) -> list[dict[str, Any]]:
    """Put both engines through the same cases, each against its own plain decoding."""
    target, tokenizer = make_model(16, 0), make_tokenizer()
    small = make_model(4, 0), make_model(4, 1, num_layers=1)
    rows = []
    for engine in (Ours, Assisted):
        # The target as its own draft: all drafts are right, so that ends fall inside blocks.
        certain = engine(target, make_model(16, 0), tokenizer)
        helped = engine(target, make_model(16, 1, num_layers=1), tokenizer)
        sampling = engine(*small, None)
        cases: dict[str, Callable[[], str]] = {
            "greedy text": lambda e=helped: greedy_text(e),
            "law of sampled texts": lambda e=sampling: sampled_law(
                e, small[0], 300 if quick else 3000
            ),
            "end of sequence inside a block": lambda e=certain: end_inside(e),
            "stop string inside a block": lambda e=certain: stop_inside(e, tokenizer),
            "two prompts of different length": lambda e=helped: two_rows(e),
            "cache of fixed shapes": lambda e=helped: static_cache(e),
        }
        for name, case in cases.items():
            try:
                problem = case()
            except Exception as error:  # a result, not a failure of the benchmark
                problem = f"{type(error).__name__}: {error}"
            rows.append({"kind": "engine", "engine": engine.name, "case": name, "problem": problem})
    return rows


PROMPTS = torch.tensor([[1, 2, 3, 4], [9, 8, 7, 6], [5, 5, 5, 5]])


def greedy_text(engine: Any) -> str:
    for prompt in PROMPTS.split(1):
        if engine.decode(prompt, 60) != engine.decode(prompt, 60, speculative=False):
            return "another text than plain decoding"
    return ""


def sampled_law(engine: Any, target: LlamaForCausalLM, num: int) -> str:
    """G-test over all texts of three tokens."""
    prompt, length = torch.tensor([[1, 2]]), 3
    texts = all_texts(4, length)
    with torch.no_grad():
        logits = target(torch.cat([prompt.expand(len(texts), -1), texts], 1)).logits[:, 1:-1]
    chosen = logits.log_softmax(-1).gather(-1, texts.unsqueeze(-1)).squeeze(-1)
    law = chosen.sum(1).exp().view([4] * length)
    test = compare_counts(count_texts(engine.sample_texts(prompt, length, num), 4), law)
    return "" if test.p_value > 1e-4 else f"p = {test.p_value:.1e} from {num} texts"


def end_inside(engine: Any) -> str:
    for prompt in PROMPTS.split(1):
        free = engine.decode(prompt, 24, speculative=False)[0]
        for end in set(free):
            got = engine.decode(prompt, 24, eos=end)[0]
            if got != free[: free.index(end) + 1]:
                return f"{len(got)} tokens, the end is the {free.index(end) + 1}th"
    return ""


def stop_inside(engine: Any, tokenizer: PreTrainedTokenizerFast) -> str:
    for prompt in PROMPTS.split(1):
        text = tokenizer.decode(engine.decode(prompt, 24, speculative=False)[0])
        for start in range(8, 16):
            stop = text[start : start + 2]
            want = engine.decode(prompt, 24, stop=stop, speculative=False)[0]
            got = engine.decode(prompt, 24, stop=stop)[0]
            if got != want:
                return f"{len(got)} tokens, plain decoding {len(want)}"
    return ""


def two_rows(engine: Any) -> str:
    ids, mask = PROMPTS[:2].clone(), torch.ones(2, 4, dtype=torch.long)
    ids[0, :2], mask[0, :2] = 0, 0
    got = engine.decode(ids, 30, mask=mask)
    alone = [engine.decode(row[m.bool()][None], 30)[0] for row, m in zip(ids, mask, strict=True)]
    return "" if got == alone else "rows differ from what they are alone"


def static_cache(engine: Any) -> str:
    plain = engine.decode(PROMPTS[:1], 30, speculative=False)
    return "" if engine.static(PROMPTS[:1], 30) == plain else "another text than plain decoding"


# Report -------------------------------------------------------------------------------------------


def goals_of(rows: list[dict[str, Any]], quick: bool) -> list[Goal]:
    def of(kind: str, **match: Any) -> list[dict[str, Any]]:
        match["kind"] = kind
        return [row for row in rows if match.items() <= row.items()]

    ours = [row for row in of("rule") if row["rule"] != PEER]
    faulty = [row for row in of("noise", rule="block") if row["keying"] != "fresh in each block"]
    fresh = of("noise", keying="fresh in each block")
    failed = [row for row in of("engine", engine=Ours.name) if row["problem"]]
    detected = [row["detected"] for row in of("control")]
    goals = [
        Goal("our rules, cases that fail", sum(not row["passed"] for row in ours), 0, False),
        Goal("mistakes detected", sum(detected), len(detected)),
        Goal("fresh noise, sigmas", max(row["sigmas"] for row in fresh), 4, False),
        Goal("our engine, cases that fail", len(failed), 0, False),
    ]
    if not quick:  # short walks do not reach that far
        least = min(row["sigmas"] for row in faulty)
        goals.append(Goal("smallest bias of reused noise, sigmas", least, 8))
    return goals


def page(rows: list[dict[str, Any]], environment: dict[str, Any]) -> str:
    """Return the tables for the docs."""

    def of(kind: str) -> list[dict[str, Any]]:
        return [row for row in rows if row["kind"] == kind]

    def grid(kind: str, column: str, cell: Callable[[dict[str, Any]], str]) -> str:
        columns = list(dict.fromkeys(row[column] for row in of(kind)))
        cases: dict[str, dict[str, str]] = {}
        for row in of(kind):
            cases.setdefault(row["case"], {})[row[column]] = cell(row)
        return table(["case", *columns], [[c, *(v[k] for k in columns)] for c, v in cases.items()])

    def verdict(row: dict[str, Any]) -> str:
        return f"passes, {row['deviation']:.0e}" if row["passed"] else short(row["problem"])

    def short(problem: str) -> str:
        return f"**{shorten(problem, 100, placeholder=' ...')}**" if problem else ""

    noise = [
        [
            row["rule"],
            row["keying"],
            ", ".join(f"{p:.4f}" for p in row["law"]),
            f"{row['tokens_per_block']:.3f}",
            f"{row['total_variation']:.4f}",
            f"{row['sigmas']:.1f}",
        ]
        for row in of("noise")
    ]
    controls = [
        [
            row["fault"],
            "yes" if row["detected"] else "**no**",
            f"{row['deviation']:.0e}",
            row["problem"],
        ]
        for row in of("control")
    ]
    engines = grid("engine", "engine", lambda row: short(row["problem"]) or "passes")
    parts = [
        f"*{environment_line(environment)}; command `python benchmarks/prove_exactness.py`.*",
        "Rules, by exact enumeration: the largest deviation of the probability of a text (of the "
        "coupled rule, the share of blocks that differ from plain sampling).",
        grid("rule", "rule", verdict),
        "Noise, by how it is keyed, on the law .1, .2, .3, .4 and a draft of the same reversed, "
        "three tokens drafted:",
        table(
            ["rule", "noise", "law", "tokens per block", "total variation", "sigmas"],
            noise,
        ),
        "Mistakes that the kit has to detect:",
        table(["mistake", "detected", "largest deviation", "as"], controls),
        "Engines, each against its own plain decoding:",
        engines,
    ]
    return "\n\n".join(parts) + "\n"


def main(args: Args) -> None:
    transformers.logging.set_verbosity_error()
    rows = rule_rows() + noise_rows(args.quick) + control_rows() + engine_rows(args.quick)
    goals = goals_of(rows, args.quick)
    path = args.json
    if args.quick and path == Args.json:
        path = ROOT / "runs/exactness-quick.json"
    save_rows(path, rows, seed=0, goals=goals)
    text = page(rows, read_json(path)["environment"])
    if not args.quick:
        write_text(ROOT / "docs/tables/exactness.md", text)
    print(text)
    for goal in goals:
        print(goal.line())


if __name__ == "__main__":
    main(tyro.cli(Args))
