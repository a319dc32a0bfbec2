"""The text that a step learns from: sampled from the student or the teacher, or given."""

from selftrain._core.rng import derive
from selftrain.distill.config import DistillConfig, Source
from selftrain.distill.pair import Pair
from selftrain.distill.rows import EncodedRow


def draw_sources(config: DistillConfig, step: int, num_rows: int) -> list[Source]:
    """Return where the text of every row of a step comes from; the same on every process.

    With ``mixing="batch"`` one draw decides for the whole step, as in algorithm 1 of GKD.
    """
    if config.mixing == "batch":
        return [_draw(config, derive(config.seed, "source", step))] * num_rows
    return [_draw(config, derive(config.seed, "source", step, i)) for i in range(num_rows)]


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
