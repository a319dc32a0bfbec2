"""A soft mixture of experts: every expert sees weighted means of all tokens.

Shape letters: B batch, T tokens, D features of a token, E experts, S slots of an expert.
"""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from selftrain._core.checks import check_int

__all__ = ["SoftMoE"]


class SoftMoE(nn.Module):
    r"""A layer of experts that is differentiable throughout (arXiv 2308.00951).

    With logits :math:`L_{tes} = x_t \cdot \Phi_{es}`, each slot holds a mean of the tokens, an
    expert is applied to its slots, and each token takes a mean of all the slots' outputs:

    .. math:: u_{es} = \sum_t \mathrm{softmax}_t(L)_{tes}\, x_t, \qquad
              y_t = \sum_{es} \mathrm{softmax}_{es}(L)_{tes}\, f_e(u_{es})

    Value networks that grow by it keep improving (arXiv 2402.08609). No token is dropped, and there
    is no loss that balances experts. The softmaxes are computed in float32 under autocast as well.

    Args:
        dim: Features of a token.
        num_experts: Number of experts.
        expert: Returns a new expert, a module over the last dimension; called once an expert. It
            may change the number of features.
        slots_per_expert: Slots of each expert. As many slots as tokens in all,
            ``ceil(num_tokens / num_experts)``, is usual.
        normalize: Compare directions: tokens and slots are scaled to length 1, and the logits by a
            learned number that starts at 1.

    Raises:
        TypeError: If a number is no integer.
        ValueError: If a number is below 1.

    Example:
        >>> moe = SoftMoE(16, 4, lambda: nn.Linear(16, 32), slots_per_expert=3)
        >>> moe(torch.zeros(8, 12, 16)).shape
        torch.Size([8, 12, 32])
    """

    def __init__(
        self,
        dim: int,
        num_experts: int,
        expert: Callable[[], nn.Module],
        *,
        slots_per_expert: int,
        normalize: bool = False,
    ) -> None:
        super().__init__()
        check_int("dim", dim, low=1)
        check_int("num_experts", num_experts, low=1)
        check_int("slots_per_expert", slots_per_expert, low=1)
        self.normalize = normalize
        self.experts = nn.ModuleList(expert() for _ in range(num_experts))
        self.phi = nn.Parameter(torch.empty(dim, num_experts, slots_per_expert))
        self.scale = nn.Parameter(torch.ones(())) if normalize else None
        # Logits of tokens with unit variance have unit variance as well.
        nn.init.normal_(self.phi, std=dim**-0.5)

    def forward(self, tokens: Float[Tensor, "batch tokens dim"]) -> Float[Tensor, "batch tokens _"]:
        """Return outputs of the experts for each token; the number of tokens is free.

        Raises:
            ValueError: If the tokens have another number of features, or there are none.
        """
        if tokens.ndim != 3 or tokens.shape[-1] != self.phi.shape[0] or tokens.shape[1] == 0:
            raise ValueError(
                f"tokens has shape {tuple(tokens.shape)}; it must be [batch, tokens, "
                f"{self.phi.shape[0]}] with at least one token."
            )
        logits_BTES = self._logits(tokens)
        dispatch_BTES = logits_BTES.softmax(1).to(tokens.dtype)
        combine_BTES = logits_BTES.flatten(2).softmax(-1).view_as(logits_BTES)
        slots_BESD = torch.einsum("btes,btd->besd", dispatch_BTES, tokens)
        outputs_BESF = torch.stack(
            [expert(slots_BESD[:, e]) for e, expert in enumerate(self.experts)], 1
        )
        return torch.einsum("btes,besf->btf", combine_BTES.to(outputs_BESF.dtype), outputs_BESF)

    def _logits(self, tokens: Tensor) -> Tensor:
        phi = self.phi
        if self.scale is not None:
            tokens, phi = F.normalize(tokens, dim=-1), self.scale * F.normalize(phi, dim=0)
        logits = torch.einsum("btd,des->btes", tokens, phi)
        return logits.double() if logits.dtype == torch.float64 else logits.float()
