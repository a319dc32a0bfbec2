"""``--model scratch``: a small model that has seen the worked problems of a synthetic task."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from transformers import PreTrainedTokenizerBase

from selftrain._core.io import recover_folder
from selftrain._core.rng import derive
from selftrain.cli._tasks import LoopTasks
from selftrain.decoding.params import SamplingParams
from selftrain.loops.config import EvaluationConfig, ReSTEMConfig
from selftrain.loops.dedupe import DedupeName
from selftrain.loops.rows import RowWriter
from selftrain.loops.vstar import VSTaRConfig
from selftrain.tasks.base import Task
from selftrain.training import FinetuneConfig, OptimConfig, finetune
from selftrain.training.checkpoint import remove_checkpoints
from selftrain.training.preference import PreferenceConfig
from selftrain.training.pretrained import load_pretrained, save_model

_MAX_NEW_TOKENS = 32  # the longest worked solution has fewer
_HINT = 40  # characters


@dataclass(frozen=True, kw_only=True)
class _Sizes:
    """How long a small model trains on a synthetic task."""

    worked_steps: int
    """Steps on the worked problems."""
    steps: int
    """Steps of a round."""
    learning_rate: float = 3e-3
    """Peak of a round's."""
    batch_size: int = 64
    """Rows of a step."""
    weight_decay: float = 0.1
    """Of matrices."""
    num_samples: int = 8
    """Of each problem in a round."""
    cap: int = 4
    """Most that are kept of them."""
    dedupe: DedupeName | None = "text"
    """What counts as one."""
    verifier_steps: int = 300
    """Steps of a verifier."""


_SIZES = {
    # Repetition is what tells right chains from lucky ones: no duplicate is removed.
    "modchain": _Sizes(
        worked_steps=1200,
        steps=500,
        learning_rate=2e-3,
        weight_decay=0.0,
        num_samples=16,
        cap=10,
        dedupe=None,
        verifier_steps=400,
    ),
    "countdown": _Sizes(worked_steps=500, steps=600, verifier_steps=250),
    "listprog": _Sizes(worked_steps=800, steps=600, learning_rate=2e-3, batch_size=32),
}


def settings(config: ReSTEMConfig, task: str) -> ReSTEMConfig:
    """Return a preset with the sizes that suit a small model, short texts and a CPU.

    They are those of ``benchmarks/loops.py``, which draws other numbers of problems, and of list
    programs takes fewer samples each. The model has seen the worked problems already, so
    that no training on solutions comes first.
    """
    sizes = _SIZES[task]
    sampling = SamplingParams(max_new_tokens=_MAX_NEW_TOKENS)  # T = 1: it must try what is new
    greedy = replace(sampling, temperature=0.0)
    improve = replace(
        config.improve,
        first_steps=sizes.steps,
        step_growth=1.0,
        batch_size=sizes.batch_size,
        optim=_optim(sizes.learning_rate, sizes.weight_decay),
        evaluations=1,
        patience=None,
    )
    return replace(
        config,
        num_samples=min(config.num_samples, sizes.num_samples),
        sampling=greedy if config.sampling.greedy else sampling,
        cap=None if config.cap is None else min(config.cap, sizes.cap),
        dedupe=config.dedupe if config.dedupe == "equations" else sizes.dedupe,
        solutions_first=False,
        improve=improve,
        evaluation=EvaluationConfig(num_samples=16, sampling=sampling),
        chunk_size=64,
        batch_size=512,
    )


def preference_settings(config: VSTaRConfig, task: str) -> VSTaRConfig:
    """Return a preset with a verifier's training to the same measure, and fewer candidates."""
    sizes = _SIZES[task]
    return replace(
        config,
        preference=PreferenceConfig(
            beta=0.5,
            problem_weighting="problem",
            num_steps=sizes.verifier_steps,
            batch_size=16,
            optim=_optim(1e-3, sizes.weight_decay),
        ),
        max_per_class=8,
        num_candidates=32,
    )


def train_base(
    folder: Path, task: str, config: ReSTEMConfig, tasks: LoopTasks, accelerator: Accelerator
) -> tuple[Any, PreTrainedTokenizerBase]:
    """Return the model that a loop begins with, trained on the worked problems the first time.

    Args:
        folder: Where it is kept.
        task: The name of the synthetic task.
        config: Its seed, and how long texts can become.
        tasks: The problems.
        accelerator: The process layer.
    """
    from selftrain.tasks.characters import character_tokenizer, small_llama

    tokenizer, sizes = character_tokenizer(), _SIZES[task]
    recover_folder(folder)
    if not folder.exists() and tasks.worked is not None:
        model = small_llama(
            tokenizer,
            num_layers=2,
            width=64,
            max_positions=_longest(config, tasks),
            seed=derive(config.seed, "scratch"),
        )
        training = folder.with_name(f"{folder.name}-training")
        finetune(
            model,
            RowWriter(tasks.worked, model, tokenizer).of_solutions(),
            FinetuneConfig(
                num_steps=sizes.worked_steps,
                batch_size=sizes.batch_size,
                optim=_optim(3e-3, sizes.weight_decay),
                seed=derive(config.seed, "worked problems"),
            ),
            output_dir=training,
            accelerator=accelerator,
            show_progress=accelerator.is_main_process,
            title="base: training",
        )
        accelerator.free_memory()
        if accelerator.is_main_process:
            save_model(model, tokenizer, folder)
            remove_checkpoints(training)
        accelerator.wait_for_everyone()
    return load_pretrained(folder), tokenizer


def _longest(config: ReSTEMConfig, tasks: LoopTasks) -> int:
    """Return the length of the longest text, prompt and completion, one token a character."""
    parts: list[Task | None] = [tasks.train, tasks.validation, tasks.test, tasks.worked]
    prompts = [str(p.prompt(problem)) for p in parts if p is not None for problem in p.problems]
    solutions = [p.solution or "" for p in (tasks.worked or tasks.train).problems]
    budget = max(config.sampling.max_new_tokens, config.evaluation.sampling.max_new_tokens)
    hint = _HINT if config.rationalize else 0
    return max(map(len, prompts)) + hint + max(budget, 1 + max(map(len, solutions)))


def _optim(learning_rate: float, weight_decay: float) -> OptimConfig:
    return OptimConfig(
        learning_rate=learning_rate,
        warmup_steps=20,
        schedule="cosine",
        weight_decay=weight_decay,
        betas=(0.9, 0.98),
    )
