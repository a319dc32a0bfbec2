"""The text that a step learns from: sampled from the student or the teacher, or given."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from selftrain._core.rng import derive
from selftrain.distill.config import DistillConfig, Source
from selftrain.distill.pair import Pair
from selftrain.distill.rows import EncodedRow
from selftrain.nn.modes import training_mode

if TYPE_CHECKING:
    from selftrain.decoding.sampler import Sampler


def draw_sources(config: DistillConfig, step: int, num_rows: int) -> list[Source]:
    """Return where the text of every row of a step comes from; the same on every process.

    With ``mixing="batch"`` one draw decides for the whole step, as in algorithm 1 of GKD.
    """
    if config.mixing == "batch":
        return [_draw(config, derive(config.seed, "source", step))] * num_rows
    return [_draw(config, derive(config.seed, "source", step, i)) for i in range(num_rows)]


def sample_ids(
    models: Sequence[nn.Module],
    sampler: "Sampler",
    rows: Sequence[EncodedRow],
    *,
    config: DistillConfig,
    pair: Pair,
    seeds: Sequence[int],
) -> list[tuple[int, ...]]:
    """Return one sampled completion per row, models in evaluation mode and without gradients.

    Args:
        models: What the sampler samples from, if that is in this process.
        sampler: Draws the completions.
        rows: Their prompts.
        config: How to sample.
        pair: What both models know.
        seeds: One per row, so that a completion depends on nothing else.

    Raises:
        ValueError: If the sampler fails, gives no token ids, or ids that one model lacks.
    """
    prompts = [list(row.prompt_ids or ()) for row in rows]
    with training_mode(False, *models), torch.no_grad():
        sampled = sampler.sample(
            prompts, num_samples=1, params=config.sampling, seeds=[[seed] for seed in seeds]
        )
    texts = []
    for (completion,) in sampled:
        if completion.token_ids is None or completion.finish_reason == "error":
            raise ValueError(
                f"the sampler returned no token ids (finish reason {completion.finish_reason!r}); "
                "distillation needs the ids that were sampled."
            )
        if max(completion.token_ids, default=0) >= pair.num_tokens:
            raise ValueError(
                f"token {max(completion.token_ids)} was sampled, but the models share only "
                f"0..{pair.num_tokens - 1}. Remove the extra rows: model.resize_token_embeddings."
            )
        texts.append(completion.token_ids)
    return texts


def local_sampler(model: Any, tokenizer: Any, *, batch_size: int) -> "Sampler":
    """Return a sampler of a model in this process."""
    from selftrain.decoding.sampler import HFSampler
    from selftrain.decoding.seq2seq_sampler import EncoderDecoderSampler

    encoder_decoder = getattr(model.config, "is_encoder_decoder", False)
    kind = EncoderDecoderSampler if encoder_decoder else HFSampler
    return kind(model, tokenizer, batch_size=batch_size)


def check_row(row: EncodedRow, name: str, config: DistillConfig, pair: Pair) -> None:
    """Raise ``ValueError`` unless the row has what every source of the configuration needs."""
    sampled = any(source != "dataset" for source in config.sources)
    prompt, completion = row.prompt_ids or (), row.completion_ids or ()
    if sampled and not prompt:
        raise ValueError(
            f"{name} has no prompt (or an empty one), but completions are sampled "
            f"(on_policy_fraction={config.on_policy_fraction}, fixed_source="
            f"{config.fixed_source!r}). Give every row a prompt."
        )
    if "dataset" in config.sources and not completion:
        raise ValueError(
            f"{name} has no completion, but on_policy_fraction={config.on_policy_fraction} with "
            'fixed_source="dataset" takes text from the data set. Give every row a completion, or '
            'set on_policy_fraction=1 or fixed_source="teacher".'
        )
    unknown = [t for t in (*prompt, *completion) if not 0 <= t < pair.num_tokens]
    if unknown:
        raise ValueError(
            f"{name} has token {unknown[0]}; the models share 0..{pair.num_tokens - 1}."
        )
    longest = max(
        config.sampling.max_new_tokens if sampled else 0,
        len(completion) if "dataset" in config.sources else 0,
    )
    if pair.context is not None and len(prompt) + longest > pair.context:
        raise ValueError(
            f"{name} has {len(prompt)} prompt tokens and up to {longest} of completion; the models "
            f"read {pair.context} in all. Shorten it, or set max_prompt_tokens or "
            "sampling.max_new_tokens."
        )


def _draw(config: DistillConfig, seed: int) -> Source:
    # Strictly below: a fraction of 0 never fires.
    if seed / 2**63 < config.on_policy_fraction:
        return "student"
    if config.fixed_source != "both":
        return config.fixed_source
    return "dataset" if derive(seed, "fixed") % 2 else "teacher"
