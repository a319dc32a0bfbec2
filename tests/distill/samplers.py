"""Samplers for tests of what uses one."""

from safetensors.torch import load_file

from selftrain.decoding import Completion, HFSampler


class FixedSampler:
    """Returns given completions by prompt."""

    def __init__(self, completions):
        self.completions = completions

    def sample(self, prompts, *, num_samples, params, seeds=None):
        return [[Completion("", tuple(self.completions[tuple(p)]), None, "stop")] for p in prompts]


class SharedDiskServer:
    """Stands for one server of all processes: samples with the weights that the folder names."""

    def __init__(self, model, folder):
        self.inner, self.named = HFSampler(model, None), folder / "current"

    def load_weights(self, path):
        self.named.write_text(str(path))

    def sample(self, prompts, *, num_samples, params, seeds=None):
        weights = load_file(f"{self.named.read_text()}/model.safetensors")
        self.inner.model.load_state_dict(weights, strict=False)  # tied weights lie there once
        return self.inner.sample(prompts, num_samples=num_samples, params=params, seeds=seeds)


class RecordingSampler:
    """The in-process sampler, and what it was asked for."""

    def __init__(self, model):
        self.inner, self.calls = HFSampler(model, None), []

    def sample(self, prompts, *, num_samples, params, seeds=None):
        self.calls.append((prompts, params, seeds))
        return self.inner.sample(prompts, num_samples=num_samples, params=params, seeds=seeds)
