"""A plain sampler without a cache for tests of what uses samplers."""

import torch

from selftrain._core.rng import torch_generator
from selftrain.decoding.params import Completion
from selftrain.ops import pad_sequences


class SlowSampler:
    """Draws token by token, one full forward pass each; a completion depends on its seed alone."""

    def __init__(self, model, *, eos_token_ids=(1,)):
        self.model, self.eos_token_ids = model, eos_token_ids
        self.calls = []

    def sample(self, prompts, *, num_samples, params, seeds=None):
        assert params.seed is None
        assert not self.model.training
        assert not torch.is_grad_enabled()
        self.calls.append((prompts, params, seeds))
        return [[c] for c in self._draw(prompts, params, [row[0] for row in seeds])]

    def _draw(self, prompts, params, seeds):
        rngs = [torch_generator(seed) for seed in seeds]
        ids, open_rows = [[] for _ in prompts], list(range(len(prompts)))
        for _ in range(params.max_new_tokens):
            texts = [list(prompts[i]) + ids[i] for i in open_rows]
            padded = pad_sequences(texts)  # on the right: a causal model does not see it
            logits = self.model(padded.token_ids).logits.float() / params.temperature
            for row, i in enumerate(open_rows):
                probs = torch.softmax(logits[row, len(texts[row]) - 1], -1)
                ids[i].append(int(torch.multinomial(probs, 1, generator=rngs[i])))
            open_rows = [i for i in open_rows if ids[i][-1] not in self.eos_token_ids]
            if not open_rows:
                break
        reasons = ["length" if i in open_rows else "stop" for i in range(len(prompts))]
        return [Completion("", tuple(t), None, r) for t, r in zip(ids, reasons, strict=True)]


class FixedSampler:
    """Returns given completions by prompt."""

    def __init__(self, completions):
        self.completions = completions

    def sample(self, prompts, *, num_samples, params, seeds=None):
        return [[Completion("", tuple(self.completions[tuple(p)]), None, "stop")] for p in prompts]
