"""Other people's verifiers: functions that draw their own noise, made to take the noise given."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from selftrain.decoding.proof.enumeration import Verifier
from selftrain.ops.verify import Verdict
from selftrain.ops.warp import inverse_cdf

_STEPS = {torch.float32: 2.0**24, torch.float16: 2.0**11, torch.bfloat16: 2.0**8}


@contextmanager
def injected_noise(accept_uniforms: Sequence[float], emit_uniform: float) -> Iterator[None]:
    """Let ``torch``'s random functions return the noise given, for as long as the context lasts.

    ``torch.rand``, ``torch.rand_like`` and ``Tensor.uniform_`` take ``accept_uniforms`` in turn
    and, when those are used up, ``emit_uniform`` once; in single precision they round down to the
    multiples of 2^-24 that ``torch.rand`` gives. ``torch.multinomial`` returns the token at which
    the running sum of its weights passes ``emit_uniform``; like the true one it raises
    ``RuntimeError`` where there is no weight. The whole process is affected: nothing else may draw
    meanwhile.

    Raises:
        RuntimeError: If more noise is asked for, or noise was drawn in another way.
    """
    queue = [*accept_uniforms, emit_uniform]

    def take(like: Tensor) -> Tensor:
        if like.numel() > len(queue):
            raise RuntimeError("the verifier draws more uniforms than it has tokens to decide.")
        drawn = torch.tensor([queue.pop(0) for _ in range(like.numel())], dtype=torch.float64)
        if like.dtype in _STEPS:  # down to what torch draws: never up to 1
            drawn = (drawn * _STEPS[like.dtype]).floor() / _STEPS[like.dtype]
        return like.copy_(drawn.view(like.shape))

    def rand(*size: object, generator: object = None, **options: object) -> Tensor:
        return take(torch.empty(*size, **options))  # pyrefly: ignore

    def rand_like(x: Tensor, *, generator: object = None, **options: object) -> Tensor:
        return take(torch.empty_like(x, **options))  # pyrefly: ignore

    def uniform_(x: Tensor, *bounds: object, generator: object = None) -> Tensor:
        if bounds not in ((), (0, 1)):
            raise RuntimeError(f"uniform_ between {bounds}: only 0 and 1 are provided for.")
        return take(x)

    def multinomial(weights: Tensor, num_samples: int, *_: object, **__: object) -> Tensor:
        if num_samples != 1 or weights[..., 0].numel() != 1:
            raise RuntimeError("multinomial draws more than one token: only one is provided for.")
        if not 0 < weights.sum() < torch.inf:  # NaN included
            raise RuntimeError("multinomial: the weights sum to no positive number.")
        uniform = torch.full(weights.shape[:-1], emit_uniform, dtype=torch.float64)
        return inverse_cdf(weights, uniform).unsqueeze(-1)

    names = {"rand": rand, "rand_like": rand_like, "multinomial": multinomial}
    true = {name: getattr(torch, name) for name in names}
    true_uniform, state = torch.Tensor.uniform_, torch.get_rng_state()
    try:
        for name, function in names.items():
            setattr(torch, name, function)
        torch.Tensor.uniform_ = uniform_  # pyrefly: ignore
        yield
    finally:
        for name, function in true.items():
            setattr(torch, name, function)
        torch.Tensor.uniform_ = true_uniform
    if not torch.equal(state, torch.get_rng_state()):
        raise RuntimeError(
            "the verifier draws noise by other means than torch.rand, torch.rand_like, "
            "Tensor.uniform_ and torch.multinomial; wrap it by hand."
        )


def foreign(sample: Callable[[Tensor, Tensor, Tensor], Tensor]) -> Verifier:
    """Make a verifier of a function that decides one block and draws its noise from ``torch``.

    Args:
        sample: Called with the target's logits ``[1, K + 1, vocab]``, the draft's
            ``[1, K, vocab]`` (one-hot ones where the draft was chosen without chance) and the
            drafted tokens ``[1, K]``; it returns the tokens that the block emits, 1 to K + 1. A row
            that drafted less comes with a smaller K.
    """

    def verify(
        target_logits: Tensor,
        draft_logits: Tensor | None,
        draft_tokens: Tensor,
        /,
        *,
        accept_uniforms: Tensor,
        emit_uniforms: Tensor,
    ) -> Verdict:
        if draft_logits is None:
            vocab = target_logits.shape[-1]
            chosen = torch.nn.functional.one_hot(draft_tokens.clamp(min=0), vocab)
            draft_logits = chosen.to(target_logits.dtype).log()
        accepted, following = [], []
        for row, k in enumerate((draft_tokens >= 0).sum(1).tolist()):
            drafted = draft_tokens[row, :k].unsqueeze(0)
            with injected_noise(accept_uniforms[row, :k].tolist(), float(emit_uniforms[row, 0])):
                emitted = sample(
                    target_logits[row, : k + 1].unsqueeze(0),
                    draft_logits[row, :k].unsqueeze(0),
                    drafted,
                ).flatten()
            tau = len(emitted) - 1
            if not 0 <= tau <= k or (emitted[:tau] != drafted[0, :tau]).any():
                raise ValueError(
                    f"{k} tokens were drafted, {drafted.tolist()}, and {emitted.tolist()} emitted: "
                    "that must be a beginning of the draft and one token more."
                )
            accepted.append(tau)
            following.append(int(emitted[-1]))
        overlap = torch.full(draft_tokens.shape, torch.nan)
        return Verdict(torch.tensor(accepted), torch.tensor(following), overlap)

    return verify
