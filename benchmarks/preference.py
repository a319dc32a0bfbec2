"""An epoch of direct preference optimisation over groups, beside TRL's over the enumerated pairs.

    python benchmarks/preference.py            # about 3 minutes on a quiet core
    python benchmarks/preference.py --quick    # under a minute, to see that it runs

Every problem has 16 correct and 16 wrong answers: 256 pairs. Both start from the same weights, have
the reference's log-probabilities beforehand, and take one optimizer step of AdamW for each
problem, on all its pairs, with the same learning rate and clipping. So they should go through the
same losses, and end with the same weights but for rounding; the table shows how nearly they do.
On both sides dropout, mixed precision and gradient checkpointing are off.
Of two sizes of its micro-batches the faster on one problem is taken, tried just before. The
times are those of whole calls, `train_preferences` and `DPOTrainer.train`, taken in turns; the
median of ratios within a turn counts. The processor's own time for the same calls stands beside
it, which other programs on the machine disturb less. "Prompts apart" is ours without reading a
shared prompt once.
"""

import contextlib
import copy
import io
import logging
import random
import statistics
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
import tyro
from harness import ROOT, Goal, environment_line, save_rows, table
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from selftrain._core.io import read_json, write_text
from selftrain.bench.timing import quartiles, take_turns
from selftrain.training import (
    OptimConfig,
    PreferenceConfig,
    PreferenceGroup,
    TokenRow,
    dpo_loss,
    row_scores,
    sequence_log_probs,
    train_preferences,
)
from selftrain.training.order import batch_indices

# Tokens of the prompt, and most tokens of an answer; answers are at least half as long.
SIZES = [(16, 16), (64, 48)]
QUICK_SIZES = [(16, 16)]
NUM_ANSWERS = 16
TRL_PAIRS = (32, 256)
METHODS = ("ours", "prompts apart", "TRL")
CHARACTERS = "abcdefghijklmnopqrstuvwxyz0123456789+-*/=#. "
BETA, LEARNING_RATE, MAX_GRAD_NORM = 0.1, 1e-3, 1.0
WANTED_SPEEDUP = 12.0
WANTED_AGREEMENT = 1e-4  # of losses that begin at 0.69


@dataclass
class Args:
    """Command line."""

    quick: bool = False
    """The smallest size only, two problems."""
    problems: int = 3
    """Problems, and so optimizer steps."""
    rounds: int = 3
    """Turns of each method."""
    threads: int = 1
    """Threads of torch. Several would wait for each other whenever the machine holds up one."""
    json: Path = ROOT / "benchmarks/results/preference.json"
    """Where the rows go."""


@dataclass(frozen=True)
class Outcome:
    """What a method came to."""

    losses: list[float]
    """Of every step."""
    model: LlamaForCausalLM
    """After the last step."""
    processor_seconds: float
    """Time that the processor spent on it."""


def tokenizer_of_characters() -> PreTrainedTokenizerFast:
    """Return one token a character."""
    vocab = {token: i for i, token in enumerate(["<pad>", "<eos>", "<unk>", *CHARACTERS])}
    backend = Tokenizer(models.WordLevel(vocab, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    backend.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token="<eos>", pad_token="<pad>", unk_token="<unk>"
    )


def new_model() -> LlamaForCausalLM:
    """Return an untrained model of the size that the loops train from scratch."""
    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=64,
            hidden_size=128,
            intermediate_size=512,
            num_hidden_layers=4,
            num_attention_heads=4,
            num_key_value_heads=4,
            max_position_embeddings=512,
            tie_word_embeddings=True,
            initializer_range=0.06,
            bos_token_id=None,
            eos_token_id=1,
            pad_token_id=0,
        )
    )


class Data:
    """Problems with answers, as texts for TRL and as groups for us."""

    def __init__(self, size: tuple[int, int], num_problems: int, model: LlamaForCausalLM) -> None:
        draw = random.Random(0)
        self.tokenizer = tokenizer_of_characters()
        self.texts: list[tuple[str, list[str], list[str]]] = []
        for _ in range(num_problems):
            prompt = "".join(draw.choices(CHARACTERS, k=size[0]))
            answers: set[str] = set()
            while len(answers) < 2 * NUM_ANSWERS:
                length = draw.randint(size[1] // 2, size[1]) - 1  # and the end of sequence
                answers.add("".join(draw.choices(CHARACTERS, k=length)))
            ordered = sorted(answers)
            self.texts.append((prompt, ordered[:NUM_ANSWERS], ordered[NUM_ANSWERS:]))
        self.groups = [self._group(*problem, model) for problem in self.texts]

    def pairs(self) -> list[dict[str, str]]:
        """Return all pairs, problem by problem, in the order in which groups are drawn."""
        order = [
            batch_indices(0, step, num_items=len(self.texts), batch_size=1)[0]
            for step in range(len(self.texts))
        ]
        return [
            {"prompt": prompt, "chosen": chosen, "rejected": rejected}
            for prompt, right, wrong in (self.texts[i] for i in order)
            for chosen in right
            for rejected in wrong
        ]

    def loss_of(self, model: LlamaForCausalLM) -> float:
        """Return the mean loss over all pairs, from plain log-probabilities."""
        losses = []
        for group in self.groups:
            found = sequence_log_probs(model, group.rows, max_tokens=1)  # one row at a time
            ratios = found - torch.tensor(group.reference, dtype=torch.float64)
            losses.append(dpo_loss(ratios[:NUM_ANSWERS], ratios[NUM_ANSWERS:], beta=BETA).mean())
        return float(torch.stack(losses).mean())

    def _group(
        self, prompt: str, right: list[str], wrong: list[str], model: LlamaForCausalLM
    ) -> PreferenceGroup:
        chosen, rejected = ([self._row(prompt, text) for text in texts] for texts in (right, wrong))
        return PreferenceGroup(
            chosen=tuple(chosen),
            rejected=tuple(rejected),
            chosen_reference=tuple(sequence_log_probs(model, chosen).tolist()),
            rejected_reference=tuple(sequence_log_probs(model, rejected).tolist()),
        )

    def _row(self, prompt: str, text: str) -> TokenRow:
        prompt_ids, ids = (self.tokenizer(t)["input_ids"] for t in (prompt, text))
        end: Any = self.tokenizer.eos_token_id
        return TokenRow(prompt_ids=tuple(prompt_ids), completion_ids=(*ids, end))


class OurSide:
    """Our way through the data."""

    def __init__(self, data: Data, start: LlamaForCausalLM, rounds: int, *, share: bool) -> None:
        self._data, self._share = data, share
        self._models = [copy.deepcopy(start) for _ in range(rounds + 1)]

    def __call__(self, turn: int) -> Outcome:
        """Train on all groups, one a step."""
        config = PreferenceConfig(
            beta=BETA,
            num_epochs=1,
            batch_size=1,
            log_every=1,
            optim=OptimConfig(learning_rate=LEARNING_RATE, max_grad_norm=MAX_GRAD_NORM),
        )
        begin = time.process_time()
        model = self._models[turn + 1]
        obstacle = row_scores.prompts_obstacle
        if not self._share:
            row_scores.prompts_obstacle = lambda _: "to see what it brings"
        try:
            report = train_preferences(model, self._data.groups, config, show_progress=False)
        finally:
            row_scores.prompts_obstacle = obstacle
        losses = [row["loss"] for row in report.history]
        return Outcome(losses, model, time.process_time() - begin)


class TRLSide:
    """TRL's way: every pair by itself, 256 to a step, in the order in which we take problems."""

    def __init__(self, data: Data, start: LlamaForCausalLM, *, pairs: int, folder: str) -> None:
        self._start = copy.deepcopy(start.state_dict())
        # With the preparation of the data and the reference's log-probabilities, before the clock.
        self._trainer = trl_trainer(data, copy.deepcopy(start), pairs=pairs, folder=folder)

    def __call__(self, turn: int) -> Outcome:
        """Train on all pairs, from the start."""
        begin = time.process_time()
        trainer = self._trainer
        trainer.model.load_state_dict(self._start)
        trainer.optimizer = trainer.lr_scheduler = None
        with quiet():
            trainer.train()
        losses = [row["loss"] for row in trainer.state.log_history if "loss" in row]
        return Outcome(losses, trainer.model, time.process_time() - begin)


def trl_trainer(data: Data, model: LlamaForCausalLM, *, pairs: int, folder: str) -> Any:
    """Return a trainer over all pairs; ``pairs`` of them in a forward pass."""
    from datasets import Dataset
    from trl import DPOConfig, DPOTrainer

    config = DPOConfig(
        output_dir=folder,
        beta=BETA,
        loss_type="sigmoid",
        precompute_ref_log_probs=True,
        per_device_train_batch_size=pairs,
        gradient_accumulation_steps=NUM_ANSWERS**2 // pairs,
        num_train_epochs=1,
        train_sampling_strategy="sequential",
        optim="adamw_torch_fused",
        learning_rate=LEARNING_RATE,
        lr_scheduler_type="constant",
        warmup_steps=0,
        weight_decay=0.0,
        max_grad_norm=MAX_GRAD_NORM,
        bf16=False,
        use_cpu=True,
        gradient_checkpointing=False,
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        dataset_num_proc=None,
    )
    with quiet():
        return DPOTrainer(
            model=model,
            args=config,
            train_dataset=Dataset.from_list(data.pairs()),
            processing_class=data.tokenizer,
        )


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep what TRL and its libraries print from the benchmark's own output."""
    import datasets

    datasets.disable_progress_bars()
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        logging.disable(logging.WARNING)
        try:
            yield
        finally:
            logging.disable(logging.NOTSET)


def has_trl() -> bool:
    """Say whether the peer is there."""
    try:
        import trl  # noqa: F401
    except ImportError as error:
        print(f"TRL is not measured: {error}; pip install 'selftrain[bench]'.")
        return False
    return True


def fastest_pairs(size: tuple[int, int], start: LlamaForCausalLM, folder: str) -> int:
    """Return with how many pairs in a forward pass TRL is fastest, on one problem."""
    data = Data(size, 1, start)
    sides = {pairs: TRLSide(data, start, pairs=pairs, folder=folder) for pairs in TRL_PAIRS}
    seconds = {}
    for pairs, side in sides.items():
        begin = time.perf_counter()
        side(-1)
        seconds[pairs] = time.perf_counter() - begin
    return min(seconds, key=lambda pairs: seconds[pairs])


def measure(size: tuple[int, int], args: Args, folder: str) -> dict[str, Any]:
    """Return one row: all methods at one size."""
    start = new_model()
    data = Data(size, args.problems, start)
    methods: dict[str, Callable[[int], Outcome]] = {
        "ours": OurSide(data, start, args.rounds, share=True),
        "prompts apart": OurSide(data, start, args.rounds, share=False),
    }
    row: dict[str, Any] = {"prompt_tokens": size[0], "answer_tokens": size[1]}
    if has_trl():
        row["trl_pairs"] = fastest_pairs(size, start, folder)
        methods["TRL"] = TRLSide(data, start, pairs=row["trl_pairs"], folder=folder)
    timed = take_turns(methods, rounds=args.rounds, device=torch.device("cpu"))
    row["seconds"] = {m: statistics.median(t.seconds for t in own) for m, own in timed.items()}
    row["processor_seconds"] = {
        m: statistics.median(t.result.processor_seconds for t in own) for m, own in timed.items()
    }
    row["losses"] = {m: own[-1].result.losses for m, own in timed.items()}
    row["final_loss"] = {m: data.loss_of(own[-1].result.model) for m, own in timed.items()}
    if "TRL" in timed:
        for name in ("ours", "prompts apart"):
            pairs = zip(timed["TRL"], timed[name], strict=True)
            row[f"speedup {name}"] = [theirs.seconds / own.seconds for theirs, own in pairs]
        both = zip(row["losses"]["TRL"], row["losses"]["ours"], strict=True)
        row["largest_difference"] = max(abs(a - b) for a, b in both)
    return row


def goals_of(rows: list[dict[str, Any]]) -> list[Goal]:
    """Return the goals that the rows speak of."""
    goals = []
    for row in rows:
        if "TRL" not in row["seconds"]:
            continue
        name = f"prompt {row['prompt_tokens']}, answers {row['answer_tokens']}"
        speedup = statistics.median(row["speedup ours"])
        goals.append(Goal(f"{name}, TRL / ours", speedup, WANTED_SPEEDUP))
        spent = row["processor_seconds"]
        ratio = spent["TRL"] / spent["ours"]
        goals.append(Goal(f"{name}, TRL / ours, processor time", ratio, WANTED_SPEEDUP))
        finals = row["final_loss"]
        for what, difference in (
            ("step losses apart", row["largest_difference"]),
            ("final loss apart", abs(finals["TRL"] - finals["ours"])),
        ):
            goals.append(Goal(f"{name}, {what}", difference, WANTED_AGREEMENT, at_least=False))
    return goals


def page(rows: list[dict[str, Any]], environment: dict[str, Any], args: Args) -> str:
    """Return the table for the docs."""

    def cells(row: dict[str, Any]) -> list[str]:
        seconds, finals = row["seconds"], row["final_loss"]
        spent = row["processor_seconds"]
        ratios = {
            name: quartiles(row.get(f"speedup {name}", [float("nan")])).text(1)
            for name in ("ours", "prompts apart")
        }
        return [
            str(row["prompt_tokens"]),
            f"{row['answer_tokens'] // 2} to {row['answer_tokens']}",
            *(f"{seconds[m]:.2f}" if m in seconds else "-" for m in METHODS),
            ratios["ours"],
            ratios["prompts apart"],
            f"{spent['TRL'] / spent['ours']:.1f}" if "TRL" in spent else "-",
            *(f"{finals[m]:.6f}" if m in finals else "-" for m in ("ours", "TRL")),
            f"{row['largest_difference']:.1e}" if "TRL" in seconds else "-",
        ]

    columns = ["prompt", "answer, tokens", *(f"{m}, s" for m in METHODS)]
    columns += ["TRL / ours", "TRL / prompts apart", "TRL / ours, processor time"]
    columns += ["final loss, ours", "final loss, TRL"]
    columns += ["step losses differ by"]
    return (
        f"*{environment_line(environment)}; {args.problems} problems of {NUM_ANSWERS} + "
        f"{NUM_ANSWERS} answers; ratios: median (quartiles) of {args.rounds} turns; command "
        f"`python benchmarks/preference.py --rounds {args.rounds}`.*\n\n"
        f"{table(columns, [cells(row) for row in rows])}\n"
    )


def main(args: Args) -> None:
    if args.quick:
        args = replace(args, problems=2, rounds=1)
    rows = []
    torch.set_num_threads(args.threads)
    with TemporaryDirectory() as folder:
        for size in QUICK_SIZES if args.quick else SIZES:
            rows.append(measure(size, args, folder))
            print(rows[-1], flush=True)
    goals = goals_of(rows)
    path = args.json.with_stem(args.json.stem + "-quick") if args.quick else args.json
    save_rows(path, rows, seed=0, goals=goals)
    text = page(rows, read_json(path)["environment"], args)
    if not args.quick:
        write_text(ROOT / "docs/tables/preference.md", text)
    print(text)
    for goal in goals:
        print(goal.line())


if __name__ == "__main__":
    main(tyro.cli(Args))
