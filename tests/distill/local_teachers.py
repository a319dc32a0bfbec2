"""Teachers for tests of what asks one."""

import torch

from selftrain.ops.linear_divergence import Head
from selftrain.training.batch import scored_logits
from selftrain.training.targets import HiddenTargets


class HiddenTeacher:
    """A model's hidden states as its head receives them; counts the rows it is asked about."""

    def __init__(self, model, *, scale=1.0, softcap=None, fail_after=None):
        self.model, self.num_rows, self._fail_after = model, 0, fail_after
        weight = model.get_output_embeddings().weight
        self.head = Head(weight, scale=scale, softcap=softcap)

    @torch.no_grad()
    def targets(self, batch):
        if self._fail_after is not None and self.num_rows >= self._fail_after:
            raise RuntimeError("killed")
        self.num_rows += len(batch.counts)
        seen = []
        hook = self.model.get_output_embeddings().register_forward_pre_hook(
            lambda module, args: seen.append(args[0])
        )
        scored_logits(self.model, batch, slices_logits=False)
        hook.remove()
        hidden = seen[0][:, batch.first :]
        return HiddenTargets(hidden.flatten(0, 1)[batch.positions], self.head)
