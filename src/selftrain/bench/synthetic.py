"""A target and a draft of tunable agreement, made from random numbers in a moment.

Speed depends on the shapes of two models and on how often they agree, not on what they say. So
neither a download nor training is needed to measure it.
"""

import copy
import math
from dataclasses import dataclass, fields

import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from selftrain._core.checks import check_choice, check_int, check_range
from selftrain._core.rng import derive


@dataclass(frozen=True, kw_only=True, slots=True)
class PairShape:
    """The sizes of a synthetic pair, and the number of draft tokens that suits them."""

    num_layers: int
    """Layers of the target."""
    draft_layers: int
    """How many of them make up the draft."""
    hidden_size: int
    """Width of the residual stream."""
    intermediate_size: int
    """Width of the feed-forward networks."""
    vocab_size: int
    """Number of tokens."""
    num_heads: int
    """Attention heads."""
    num_kv_heads: int
    """Heads of keys and values."""
    num_draft_tokens: int
    """Tokens drafted per block where the user names no number."""

    def __post_init__(self) -> None:
        for field in fields(self):
            check_int(field.name, getattr(self, field.name), low=1)
        check_int("draft_layers", self.draft_layers, high=self.num_layers)


PAIRS = {
    "tiny": PairShape(
        num_layers=4,
        draft_layers=1,
        hidden_size=64,
        intermediate_size=256,
        vocab_size=256,
        num_heads=2,
        num_kv_heads=2,
        num_draft_tokens=3,
    ),
    "small": PairShape(
        num_layers=8,
        draft_layers=1,
        hidden_size=256,
        intermediate_size=1024,
        vocab_size=2048,
        num_heads=4,
        num_kv_heads=4,
        num_draft_tokens=4,
    ),
    "large": PairShape(
        num_layers=12,
        draft_layers=2,
        hidden_size=768,
        intermediate_size=3072,
        vocab_size=8192,
        num_heads=12,
        num_kv_heads=12,
        num_draft_tokens=5,
    ),
    # The shapes of Llama 3 8B, and as draft about a billion parameters beside the embedding.
    "8b": PairShape(
        num_layers=32,
        draft_layers=2,
        hidden_size=4096,
        intermediate_size=14336,
        vocab_size=128256,
        num_heads=32,
        num_kv_heads=8,
        num_draft_tokens=5,
    ),
}
"""Pairs by name: small and large for CPUs, 8b for a GPU, tiny to see that it runs."""


@torch.no_grad()
def synthetic_pair(
    shape: PairShape | str,
    *,
    damping: float = 0.02,
    corruption: float = 0.0,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    seed: int = 0,
) -> tuple[PreTrainedModel, PreTrainedModel]:
    r"""Return a random Llama and a draft made of its first layers, its final norm and its head.

    Every matrix is drawn with variance 1 / fan-in, so that each branch of a layer adds about as
    much to the residual stream as the embedding put there. The branches of the layers that the
    draft lacks are then scaled by ``damping``: with 0 the models agree always, with 1 hardly ever.
    The logits' deviation grows with the vocabulary (:func:`logit_deviation`) so that the laws are
    about as uncertain as a language model's. The head is not tied to the embedding: a random tied
    model repeats its last token for ever, whereas here most tokens of a greedy text of a hundred
    occur once.

    The draft shares the target's weights and needs no memory of its own, unless ``corruption``
    gives it another head: that is the way to drafts that agree as rarely as one likes.

    Args:
        shape: The sizes, or a name: small and large for CPUs, 8b for a GPU, tiny for tests.
        damping: Scale of what the target has beyond the draft, from 0.
        corruption: Weight c of noise in the draft's head, from 0 to 1:
            :math:`\sqrt{1 - c^2} W + c W'`, which leaves the logits' deviation as it is.
        dtype: Of both models. The numbers drawn do not depend on it.
        device: Of both models. The numbers drawn depend on its type.
        seed: Makes the weights a function of it and the shape.

    Returns:
        The target and the draft, in evaluation mode, without gradients and without an end of text.

    Raises:
        ValueError: If the name is unknown or a scale is out of range.
    """
    if isinstance(shape, str):
        check_choice("pair", shape, PAIRS)
        shape = PAIRS[shape]
    check_range("damping", damping, low=0.0)
    check_range("corruption", corruption, low=0.0, high=1.0)
    target = _empty(_config(shape), dtype, device)
    rng = torch.Generator(device).manual_seed(derive(seed, "pair"))
    for name, weight in target.named_parameters():
        _fill(name, weight, rng)
    for layer in target.model.layers[shape.draft_layers :]:
        layer.self_attn.o_proj.weight.mul_(damping)
        layer.mlp.down_proj.weight.mul_(damping)
    draft = _first_layers(target, shape.draft_layers)
    if corruption:
        draft.lm_head = copy.deepcopy(target.lm_head)
        noise = torch.empty_like(draft.lm_head.weight)
        _fill("lm_head.weight", noise, torch.Generator(device).manual_seed(derive(seed, "noise")))
        draft.lm_head.weight.mul_((1 - corruption**2) ** 0.5).add_(noise, alpha=corruption)
    return target, draft


def logit_deviation(vocab_size: int) -> float:
    r"""Return the standard deviation that gives normal logits about the entropy of text.

    The entropy of such a law over V tokens is :math:`\log V - \sigma^2 / 2` on average, which is
    solved for 2.5 nats. The formula comes out low where a few tokens have most of the mass:
    for 256 to 128256 tokens the laws have between 3 and 4.5 nats, and their most likely token a
    probability of about a quarter.
    """
    return math.sqrt(2 * max(0.5, math.log(vocab_size) - 2.5))


def _config(shape: PairShape) -> LlamaConfig:
    return LlamaConfig(
        vocab_size=shape.vocab_size,
        hidden_size=shape.hidden_size,
        intermediate_size=shape.intermediate_size,
        num_hidden_layers=shape.num_layers,
        num_attention_heads=shape.num_heads,
        num_key_value_heads=shape.num_kv_heads,
        max_position_embeddings=8192,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=0,
    )


def _empty(config: LlamaConfig, dtype: torch.dtype, device: torch.device | str) -> LlamaForCausalLM:
    """Return a model whose weights are void: the usual initialisation takes minutes at 8B."""
    with torch.device("meta"):
        model = LlamaForCausalLM(config).to(dtype)  # pyrefly: ignore[bad-argument-type]
    model.to_empty(device=device)
    with torch.device(device):  # its frequencies are computed, not drawn
        model.model.rotary_emb = LlamaRotaryEmbedding(config)
    return model.eval().requires_grad_(False)


def _fill(name: str, weight: torch.Tensor, rng: torch.Generator) -> None:
    if weight.ndim == 1:  # norms
        weight.fill_(1.0)
        return
    scale = 1.0 if "embed_tokens" in name else weight.shape[1] ** -0.5
    if "lm_head" in name:
        scale *= logit_deviation(weight.shape[0])
    # In float32 whatever the dtype: the same model, rounded.
    drawn = torch.empty(weight.shape, device=weight.device)
    weight.copy_(drawn.normal_(0.0, scale, generator=rng))


def _first_layers(target: LlamaForCausalLM, num: int) -> LlamaForCausalLM:
    config = copy.deepcopy(target.config)
    config.num_hidden_layers = num
    with torch.device("meta"):
        draft = LlamaForCausalLM(config)
    inner, whole = draft.model, target.model
    inner.embed_tokens, inner.norm, inner.rotary_emb = (
        whole.embed_tokens,
        whole.norm,
        whole.rotary_emb,
    )
    inner.layers = nn.ModuleList(whole.layers[:num])
    draft.lm_head = target.lm_head
    return draft.eval()
