"""``--model scratch``: a small model that has seen the worked problems of a synthetic task."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from transformers import PreTrainedTokenizerBase

from selftrain._core.io import recover_folder
from selftrain._core.rng import derive
from selftrain.cli._tasks import LoopTasks
from selftrain.decoding.params import SamplingParams
from selftrain.loops.config import EvaluationConfig, ReSTEMConfig
from selftrain.loops.rows import RowWriter
from selftrain.loops.vstar import VSTaRConfig
from selftrain.tasks.base import Task
from selftrain.training import FinetuneConfig, OptimConfig, finetune
from selftrain.training.checkpoint import remove_checkpoints
from selftrain.training.preference import PreferenceConfig
from selftrain.training.pretrained import load_pretrained, save_model

_MAX_NEW_TOKENS = 40  # the longest worked solution has about 30
_HINT = 40  # characters
_NUM_STEPS, _BATCH_SIZE = 600, 128


def settings(config: ReSTEMConfig) -> ReSTEMConfig:
    """Return a preset with the sizes that suit a small model, short texts and a CPU.

    They are near those of ``benchmarks/loops.py``. The model has seen the worked problems already, so
    that no training on solutions comes first.
    """
    sampling = SamplingParams(max_new_tokens=_MAX_NEW_TOKENS)  # T = 1: it must try what is new
    greedy = SamplingParams(max_new_tokens=_MAX_NEW_TOKENS, temperature=0.0)
    steps = replace(
        config.improve,
        first_steps=400,
        step_growth=1.0,
        batch_size=_BATCH_SIZE,
        optim=_optim(3e-3),
        evaluations=1,
        patience=None,
    )
    return replace(
        config,
        num_samples=min(config.num_samples, 16),
        sampling=greedy if config.sampling.greedy else sampling,
        cap=None if config.cap is None else min(config.cap, 10),
        solutions_first=False,
        improve=steps,
        evaluation=EvaluationConfig(num_samples=16, sampling=sampling),
        chunk_size=64,
        batch_size=512,
    )


def preference_settings(config: VSTaRConfig) -> VSTaRConfig:
    """Return a preset with a verifier's training to the same measure, and fewer candidates."""
    return replace(
        config,
        preference=PreferenceConfig(
            beta=0.5,
            problem_weighting="problem",
            num_steps=300,
            batch_size=16,
            optim=_optim(1e-3),
        ),
        max_per_class=8,
        num_candidates=32,
    )


def train_base(
    folder: Path, config: ReSTEMConfig, tasks: LoopTasks, accelerator: Accelerator
) -> tuple[Any, PreTrainedTokenizerBase]:
    """Return the model that a loop begins with, trained on the worked problems the first time.

    Args:
        folder: Where it is kept.
        config: Its seed, and how long texts can become.
        tasks: The problems.
        accelerator: The process layer.
    """
    from selftrain.tasks.characters import character_tokenizer, small_llama

    tokenizer = character_tokenizer()
    recover_folder(folder)
    if not folder.exists() and tasks.worked is not None:
        model = small_llama(
            tokenizer,
            max_positions=_longest(config, tasks),
            seed=derive(config.seed, "scratch"),
        )
        training = folder.with_name(f"{folder.name}-training")
        finetune(
            model,
            RowWriter(tasks.worked, model, tokenizer).of_solutions(),
            FinetuneConfig(
                num_steps=_NUM_STEPS,
                batch_size=_BATCH_SIZE,
                optim=_optim(3e-3),
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


def _optim(learning_rate: float) -> OptimConfig:
    return OptimConfig(
        learning_rate=learning_rate,
        warmup_steps=20,
        schedule="cosine",
        weight_decay=0.1,
        betas=(0.9, 0.98),
    )
