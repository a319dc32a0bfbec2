"""The model card of a distilled student: what it is, how it was made, how to load it."""

from collections.abc import Mapping
from typing import Any

from selftrain._core.card import card_header, loading_code, settings_of, value_table
from selftrain._core.config import to_dict
from selftrain.distill.config import DistillConfig


def model_card(
    *,
    student: str,
    teacher: str,
    dataset: str | None = None,
    num_rows: int | None = None,
    config: DistillConfig,
    metrics: Mapping[str, float],
    has_adapters: bool = False,
    is_encoder_decoder: bool = False,
) -> str:
    """Return the text of a ``README.md`` with a header that the hub reads.

    Args:
        student: Hub name or folder of what the student was before; only a hub name goes into the
            header.
        teacher: What taught it, in words or by name.
        dataset: Where the rows came from; None: not known.
        num_rows: How many there were; None: not known.
        config: The settings.
        metrics: The last metrics of the run.
        has_adapters: Whether the folder holds adapters of the student only.
        is_encoder_decoder: Whether it is an encoder-decoder.
    """
    kind = {"has_adapters": has_adapters, "is_encoder_decoder": is_encoder_decoder}
    lines = [
        *card_header(student, tags=("distillation",), **kind),
        "",
        f"# {student.rstrip('/').rsplit('/', 1)[-1]}, distilled",
        "",
        f"`{student}` was distilled from {teacher} with "
        "[selftrain](https://selftrain.readthedocs.io).",
        "",
        "## Training",
        "",
        f"- Method: {_method(config)}",
        f"- Teacher: {teacher}",
        *([] if dataset is None else [f"- Data: `{dataset}`{_count(num_rows)}"]),
        f"- Steps: {config.num_steps} of {config.batch_size} rows",
        "",
        "## Loading",
        "",
        *loading_code(student, **kind),
        "",
        "## Last metrics",
        "",
        *value_table({name: f"{value:.4g}" for name, value in metrics.items()}, "metric"),
        "",
        "## Settings",
        "",
        *value_table(settings_of(to_dict(config)), "setting"),
        "",
    ]
    return "\n".join(lines)


def model_card_of(
    student: Any, teacher: Any, config: DistillConfig, metrics: Mapping[str, float]
) -> str:
    """Return the card of a student in memory; models go by the names they were loaded under."""
    taught = "its own base, the adapters switched off" if teacher is None else f"`{_name(teacher)}`"
    return model_card(
        student=_name(student),
        teacher=taught,
        config=config,
        metrics=metrics,
        has_adapters=hasattr(student, "peft_config"),
        is_encoder_decoder=bool(getattr(student.config, "is_encoder_decoder", False)),
    )


def _name(model: Any) -> str:
    loaded = getattr(getattr(model, "config", None), "name_or_path", "")
    return loaded or type(model).__name__


def _count(num_rows: int | None) -> str:
    return "" if num_rows is None else f", {num_rows} rows"


def _method(config: DistillConfig) -> str:
    share = config.on_policy_fraction
    source = {"dataset": "the data set", "teacher": "the teacher"}.get(
        config.fixed_source, "the data set and the teacher"
    )
    parts = [f"{share:.0%} of the text the student's own"] if share > 0 else []
    parts += [f"{1 - share:.0%} from {source}"] if share < 1 else []
    loss = "the likelihood of the text" if config.divergence == "nll" else config.divergence
    papers = " ([GKD](https://arxiv.org/abs/2306.13649))" if share > 0 else ""
    return f"{loss}; {', '.join(parts)}{papers}"
