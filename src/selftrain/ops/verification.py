"""Verification and sampling from raw logits and seeds, by eager code or by Triton kernels.

:mod:`selftrain.ops.verify` has the rules as functions of laws and noise. Here the logits are as
the models return them, and the noise is addressed (:mod:`selftrain.ops.philox`), so that kernels
can make both on the fly: the same call gives the same tokens on either backend, except where a
decision hangs on the rounding of logarithms.
"""

from typing import Literal

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from selftrain._core.checks import check_choice
from selftrain.kernels._dispatch import Backend, choose
from selftrain.ops.philox import Stream, gumbel, uniform
from selftrain.ops.verify import (
    Verdict,
    _check_shapes,
    verify_block,
    verify_coupled,
    verify_greedy,
    verify_tokens,
)
from selftrain.ops.warp import check_warp, inverse_cdf, warp_logits

Rule = Literal["token", "block", "greedy", "coupled"]
RULES = ("token", "block", "greedy", "coupled")


def verify_draft(
    target_logits: Float[Tensor, "batch places vocab"],
    draft_logits: Float[Tensor, "batch places-1 vocab"] | None,
    draft_tokens: Int64[Tensor, "batch places-1"],
    *,
    rule: Rule,
    seeds: Int64[Tensor, " batch"],
    starts: Int64[Tensor, " batch"],
    temperature: float | Float[Tensor, " batch"] = 1.0,
    top_k: int | None = None,
    top_p: float = 1.0,
    min_p: float = 0.0,
    overlap: bool = True,
    backend: Backend = "auto",
) -> Verdict:
    """Warp the logits of target and draft alike, and verify one block of every row.

    The same as :func:`selftrain.ops.warp_logits` followed by :func:`selftrain.ops.verify_tokens`,
    ``verify_block``, ``verify_greedy`` or ``verify_coupled``. The Triton form reads the logits
    once (twice for the block rule and for the overlap), writes nothing of the size of the
    vocabulary and does not wait for the GPU.

    Args:
        target_logits: Raw logits of the target; on Triton the last dimension must be contiguous.
        draft_logits: Raw logits of the draft, which must have been warped by the same parameters
            when the tokens were drawn; None if those were chosen without chance. The greedy and
            the coupled rule do not read them.
        draft_tokens: Drafted ids; void from the first -1 on.
        rule: Which tokens stand. At temperature 0 every rule is the greedy one.
        seeds: The seed of each row.
        starts: Index in its sequence of the first token that the block decides, for each row: with
            the place in the block it addresses the noise.
        temperature: One for all rows, or one for each. Single rows cannot be greedy: in a tensor
            it must be positive, and rows where it is not give the next token -1.
        top_k: As in :func:`selftrain.ops.warp_logits`.
        top_p: Likewise.
        min_p: Likewise.
        overlap: False leaves the field NaN, which saves Triton a pass with the token rule.
        backend: "auto" takes Triton on CUDA where it can, "eager" is torch.

    Returns:
        The verdict; the next token is -1 where the logits it would come from are no law (NaN,
        +inf, or all -inf).

    Raises:
        ValueError: If a parameter is out of range, shapes do not belong together, or the backend
            cannot run.
    """
    check_choice("rule", rule, RULES)
    # Per-row temperatures lie on the device: looking at them here would make the host wait.
    scalar = 1.0 if isinstance(temperature, Tensor) else temperature
    check_warp(scalar, top_k, top_p, min_p)
    if scalar == 0:
        rule = "greedy"
    if rule in ("greedy", "coupled"):
        draft_logits = None
    _check_shapes(target_logits, draft_logits, draft_tokens)
    chosen = _choose(backend, target_logits, draft_logits)
    verify = _verify_triton if chosen == "triton" else _verify_eager
    return verify(
        target_logits,
        draft_logits,
        draft_tokens,
        rule,
        seeds,
        starts,
        (temperature, top_k, top_p, min_p),
        overlap,
    )


def sample_tokens(
    logits: Float[Tensor, "batch vocab"],
    *,
    seeds: Int64[Tensor, " batch"],
    positions: Int64[Tensor, " batch"],
    stream: int,
    slot: int = 0,
    temperature: float | Float[Tensor, " batch"] = 1.0,
    top_k: int | None = None,
    top_p: float = 1.0,
    min_p: float = 0.0,
    backend: Backend = "auto",
) -> Int64[Tensor, " batch"]:
    """Draw one token a row from raw logits by inverse CDF, with the noise of an address.

    The same as :func:`selftrain.ops.warp_logits`, a softmax, :func:`selftrain.ops.uniform` and
    :func:`selftrain.ops.inverse_cdf`.

    Args:
        logits: Raw logits of one position of every row.
        seeds: The seed of each row.
        positions: Index in its sequence of the first token that the block decides.
        stream: A :class:`selftrain.ops.Stream`: DRAFT for a draft, EMIT for a plain sampler.
        slot: Place in the block.
        temperature: One for all rows, or a positive one for each; 0 takes the most likely token.
        top_k: As in :func:`selftrain.ops.warp_logits`.
        top_p: Likewise.
        min_p: Likewise.
        backend: "auto" takes Triton on CUDA where it can, "eager" is torch.

    Returns:
        The tokens; -1 where the logits are no law.

    Raises:
        ValueError: If a parameter is out of range or the backend cannot run.
    """
    check_warp(1.0 if isinstance(temperature, Tensor) else temperature, top_k, top_p, min_p)
    if not isinstance(temperature, Tensor) and temperature == 0:
        highest, best = logits.max(-1)
        return torch.where(highest.isfinite(), best, -1)
    if _choose(backend, logits, None) == "triton":
        from selftrain.kernels.sample import sample_rows

        scalar, tensor = _temperatures(temperature)
        return sample_rows(
            logits, seeds, positions, int(stream), slot, scalar, tensor, top_k, top_p, min_p
        )
    laws = torch.softmax(_warp(logits, (temperature, top_k, top_p, min_p)), dim=-1)
    noise = uniform(seeds, stream=stream, position=positions, slot=slot)
    return inverse_cdf(laws, noise).masked_fill(laws[:, 0].isnan(), -1)


_Warp = tuple[float | Tensor, int | None, float, float]


def _verify_eager(
    target_logits: Tensor,
    draft_logits: Tensor | None,
    draft_tokens: Tensor,
    rule: Rule,
    seeds: Tensor,
    starts: Tensor,
    warp: _Warp,
    overlap: bool,
) -> Verdict:
    place = torch.arange(target_logits.shape[1], device=target_logits.device)
    if rule == "greedy":
        verdict = verify_greedy(target_logits, draft_tokens)
    elif rule == "coupled":
        noise = gumbel(
            seeds.unsqueeze(1),
            position=starts.unsqueeze(1) + place,
            vocab_size=target_logits.shape[2],
        )
        verdict = verify_coupled(_warp(target_logits, warp), draft_tokens, gumbel=noise)
    else:
        address = {"position": starts.unsqueeze(1), "slot": place}
        verdict = (verify_tokens if rule == "token" else verify_block)(
            _warp(target_logits, warp),
            None if draft_logits is None else _warp(draft_logits, warp),
            draft_tokens,
            accept_uniforms=uniform(seeds.unsqueeze(1), stream=Stream.ACCEPT, **address)[:, :-1],
            emit_uniforms=uniform(seeds.unsqueeze(1), stream=Stream.EMIT, **address),
        )
    return verdict if overlap else verdict._replace(overlap=verdict.overlap * torch.nan)


def _verify_triton(
    target_logits: Tensor,
    draft_logits: Tensor | None,
    draft_tokens: Tensor,
    rule: Rule,
    seeds: Tensor,
    starts: Tensor,
    warp: _Warp,
    overlap: bool,
) -> Verdict:
    scalar, tensor = _temperatures(warp[0])
    address = (draft_tokens.contiguous(), seeds.contiguous(), starts.contiguous())
    if rule in ("greedy", "coupled"):
        from selftrain.kernels.best import verify_best

        if rule == "greedy":
            scalar, tensor, warp = 1.0, None, (1.0, None, 1.0, 0.0)
        found = verify_best(target_logits, *address, scalar, tensor, *warp[1:], rule == "coupled")
        found = Verdict(*found)
        return found if overlap else found._replace(overlap=found.overlap * torch.nan)
    from selftrain.kernels.verify import verify_sampled

    return Verdict(
        *verify_sampled(
            target_logits,
            draft_logits,
            *address,
            scalar,
            tensor,
            *warp[1:],
            rule == "block",
            overlap,
        )
    )


def _choose(backend: Backend, logits: Tensor, draft_logits: Tensor | None) -> str:
    chosen = choose(backend, logits)
    if chosen == "eager":
        return chosen
    for name, tensor in (("target_logits", logits), ("draft_logits", draft_logits)):
        if tensor is None:
            continue
        wrong = None
        if tensor.shape[-1] > 1 and tensor.stride(-1) != 1:
            wrong = f"{name} must be contiguous in the last dimension, its strides are "
            wrong += f"{tensor.stride()}"
        elif tensor.dtype != logits.dtype:
            wrong = f"{name} is {tensor.dtype}, target_logits {logits.dtype}: the kernels read one"
        if wrong and backend == "triton":
            raise ValueError(f"{wrong}. Use backend='auto', which then takes eager code.")
        if wrong:
            return "eager"
    return chosen


def _temperatures(temperature: float | Tensor) -> tuple[float, Tensor | None]:
    """Return what the kernels take: a number, and the tensor that replaces it."""
    if isinstance(temperature, Tensor):
        return 1.0, temperature.float().contiguous()
    return float(temperature), None


def _warp(logits: Tensor, warp: _Warp) -> Tensor:
    temperature, top_k, top_p, min_p = warp
    if isinstance(temperature, Tensor):
        logits = logits if logits.dtype == torch.float64 else logits.float()
        # Not a positive temperature: no law, as in the kernels.
        temperature = torch.where(temperature > 0, temperature, torch.nan)
        logits = logits / temperature.view(-1, *[1] * (logits.ndim - 1))
        temperature = 1.0
    return warp_logits(logits, temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p)
