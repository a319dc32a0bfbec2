"""Samplers for tests of what uses one."""

from selftrain.decoding import Completion, HFSampler


class FixedSampler:
    """Returns given completions by prompt."""

    def __init__(self, completions):
        self.completions = completions

    def sample(self, prompts, *, num_samples, params, seeds=None):
        return [[Completion("", tuple(self.completions[tuple(p)]), None, "stop")] for p in prompts]


class RecordingSampler:
    """The in-process sampler, and what it was asked for."""

    def __init__(self, model):
        self.inner, self.calls = HFSampler(model, None), []

    def sample(self, prompts, *, num_samples, params, seeds=None):
        self.calls.append((prompts, params, seeds))
        return self.inner.sample(prompts, num_samples=num_samples, params=params, seeds=seeds)
