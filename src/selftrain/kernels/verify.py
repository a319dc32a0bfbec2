"""Speculative verification in four launches, the form of :mod:`selftrain.ops.verify` on GPUs.

``stats`` reads every logit once and leaves a maximum and a sum for each block of the vocabulary;
``decide`` makes the normalisers of these and tests the drafted tokens; ``residual`` sums
max(0, pi p - q), at every place for block verification and for the overlap, else only where a token
fell; ``emit`` ends block verification and draws the next token by inverse CDF. Nothing waits for
the host, and nothing of the size of the vocabulary is written.
"""

import torch
import triton
from torch import Tensor

from selftrain.kernels._dispatch import launch, register
from selftrain.kernels.accept import decide_kernel
from selftrain.kernels.emit import emit_kernel, residual_kernel
from selftrain.kernels.rows import Rows, cut_arguments
from selftrain.kernels.threshold import warped_stats


def _fake(
    target: Tensor, draft: Tensor | None, tokens: Tensor, *_: object, **__: object
) -> tuple[Tensor, Tensor, Tensor]:
    batch = tokens.new_empty(tokens.shape[0])
    return batch, torch.empty_like(batch), tokens.new_empty(tokens.shape, dtype=torch.float32)


@register("selftrain::verify_sampled", _fake)
def verify_sampled(
    target: Tensor,
    draft: Tensor | None,
    tokens: Tensor,
    seeds: Tensor,
    starts: Tensor,
    temperature: float,
    temperatures: Tensor | None,
    top_k: int | None,
    top_p: float,
    min_p: float,
    prefix: bool,
    overlap: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return accepted tokens, next token and overlap; see :func:`selftrain.ops.verify_draft`."""
    rows = Rows(target, draft, temperature, temperatures)
    batch, drafted = tokens.shape
    maxima, sums, cut = warped_stats(rows, top_k, top_p, min_p)
    layout = rows.layout()
    block = layout.pop("BLOCK")
    common = {**rows.logits(), **cut_arguments(rows, cut), **layout, "PREFIX": prefix}
    between = {
        "row_max": rows.empty(rows.num_rows),
        "row_mass": rows.empty(rows.num_rows),
        "prefix_probs": rows.empty(batch, drafted + 1),
        "num_drafted": rows.empty(batch, dtype=torch.int32),
        "num_accepted": rows.empty(batch, dtype=torch.int32),
    }
    row_arguments = {
        "maxima": maxima,
        "sums": sums,
        "tokens": tokens,
        "seeds": seeds,
        "starts": starts,
        "token_probs": rows.empty(batch, drafted),
        "HAS_DRAFT": draft is not None,
        "BLOCKS": triton.next_power_of_2(rows.num_blocks),
        "PLACES": triton.next_power_of_2(drafted + 1),
    }
    launch(decide_kernel)[(batch,)](**common, **between, **row_arguments, num_warps=4)
    cells = {
        "residuals": rows.empty(batch, drafted, rows.num_blocks),
        "overlaps": rows.empty(batch, drafted, rows.num_blocks),
    }
    if draft is not None and drafted:
        everywhere = prefix or overlap
        launch(residual_kernel)[(batch * (drafted if everywhere else 1), rows.num_blocks)](
            **common, **between, **cells, ALL=everywhere, BLOCK=block, num_warps=4
        )
    accepted, next_tokens = torch.empty_like(seeds), torch.empty_like(seeds)
    shared = rows.empty(batch, drafted)
    launch(emit_kernel)[(batch,)](
        **common,
        **between,
        **row_arguments,
        **cells,
        accepted=accepted,
        next_tokens=next_tokens,
        overlap=shared,
        OVERLAP=overlap,
        BLOCK=block,
        num_warps=8,
    )
    return accepted, next_tokens, shared
