"""Log-probabilities of completions under a fixed model, such as a preference loss's reference."""

from collections.abc import Sequence

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from selftrain._core.checks import check_int, check_not_empty
from selftrain._core.logging import progress
from selftrain.nn.modes import training_mode
from selftrain.training.batch import TokenRow
from selftrain.training.row_scores import RowScorer, token_batches


@torch.no_grad()
def sequence_log_probs(
    model: nn.Module,
    rows: Sequence[TokenRow],
    *,
    max_tokens: int = 16384,
    accelerator: Accelerator | None = None,
    show_progress: bool = False,
) -> Tensor:
    r"""Return the log-probability of every row's completion given its prompt, in nats.

    .. math:: \log p(y \mid x) = \sum_t m_t \log p(y_t \mid x, y_{<t})

    with the row's mask m. Computed in evaluation mode, with float32 logits and sums in float64. A
    prompt that several rows share is read once where the model allows it, and no more logits than a
    chunk's are in memory at a time.

    Args:
        model: Returns logits the Hugging Face way; decoder-only or encoder-decoder. It should be on
            the accelerator's device.
        rows: Prompts and completions, end-of-sequence tokens included where they should count.
            Weights are ignored.
        max_tokens: Tokens in a forward pass, padding included.
        accelerator: Its processes share the rows, and all get the whole result; all must call this
            together. None makes one.
        show_progress: Whether to show a bar with the number of rows.

    Returns:
        Float64 ``[rows]`` in the order of ``rows``, on the CPU.

    Raises:
        ValueError: If there is no row, or one has no scored token.

    Example:
        >>> rows = [TokenRow(prompt_ids=(5, 6), completion_ids=(7, 1))]
        >>> sequence_log_probs(model, rows)  # doctest: +SKIP
        tensor([-7.5318], dtype=torch.float64)
    """
    check_not_empty("rows", rows)
    check_int("max_tokens", max_tokens, low=1)
    check_scored("rows", rows, model)
    accelerator = accelerator or Accelerator()
    scorer = RowScorer(model, accelerator)
    result = torch.zeros(len(rows), dtype=torch.float64, device=accelerator.device)
    batches = token_batches(rows, max_tokens, by_prompt=scorer.shares)
    rank, world = accelerator.process_index, accelerator.num_processes
    done, show = 0, show_progress and accelerator.is_main_process
    with (
        training_mode(False, model),
        progress("log-probabilities", len(rows), show=show) as bar,
    ):
        # Equally many passes on every process: sharded models exchange parameters in each.
        for first in range(0, len(batches), world):
            numbers = batches[min(first + rank, len(batches) - 1)]
            log_probs = scorer(model, [rows[i] for i in numbers]).log_probs()
            if first + rank < len(batches):
                result[torch.tensor(numbers, device=result.device)] = log_probs
            done += sum(map(len, batches[first : first + world]))
            bar.update(done)
    if accelerator.num_processes > 1:
        result = accelerator.reduce(result, "sum")
    return result.cpu()


def check_scored(name: str, rows: Sequence[TokenRow], model: nn.Module) -> None:
    """Raise ``ValueError`` if a row has no token whose probability could be asked for."""
    encoder = bool(getattr(getattr(model, "config", None), "is_encoder_decoder", False))
    for i, row in enumerate(rows):
        scored = row.mask if row.mask is not None else (True,) * len(row.completion_ids)
        # Nothing predicts the first token of a decoder-only sequence.
        if not any(scored[0 if encoder or row.prompt_ids else 1 :]):
            raise ValueError(
                f"{name}[{i}] has no scored token (prompt of {len(row.prompt_ids)}, completion of "
                f"{len(row.completion_ids)} tokens); its log-probability would be 0 whatever the "
                "model. Leave it out."
            )
