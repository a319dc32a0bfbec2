"""Spec 8.13: what distillation is for, on errands whose law is known, over three seeds."""

from dataclasses import replace
from statistics import mean

import pytest
import torch
from accelerate import Accelerator
from transformers import LlamaForCausalLM

from selftrain._core.rng import torch_generator
from selftrain.bench.walks import make_walks
from selftrain.decoding import SamplingParams
from selftrain.distill import DistillConfig, Distiller, DraftEvaluator, target_texts
from selftrain.distill.drafts import forced_values
from selftrain.training import FinetuneConfig, OptimConfig, TokenRow, finetune

pytestmark = pytest.mark.slow

SEEDS = (0, 1, 2)
LENGTH, PROMPT = 24, 6
PARAMS = SamplingParams(max_new_tokens=LENGTH)
EQUAL = DistillConfig(
    divergence="forward_kl",
    sampling=PARAMS,
    num_steps=80,
    optim=OptimConfig(learning_rate=3e-3, warmup_steps=5, schedule="cosine"),
    save_every=None,
)


class Setting:
    """A teacher of four layers that read much, and a student of two that read little."""

    def __init__(self, seed, make_llama, tokenizer):
        self.seed, self.tokenizer = seed, tokenizer
        self.walks = make_walks(num_places=30, num_goals=5, sharpness=4.0, slip=0.01, seed=seed)
        assert self.walks.vocab_size <= len(tokenizer)
        self.teacher = make_llama(
            seed=seed, sharpness=4.0, num_hidden_layers=4, hidden_size=64, intermediate_size=128
        )
        self.student = make_llama(seed=seed + 100, sharpness=4.0, hidden_size=48)
        self._learn(self.teacher, 32 * 200, 200, stray=0.15)
        self._learn(self.student, 128, 80)
        self.teacher.requires_grad_(False)
        texts = self._texts("data", 128)
        self.rows = [
            {"prompt_ids": t["input_ids"][:PROMPT], "completion_ids": t["input_ids"][PROMPT:]}
            for t in texts
        ]
        self.held_out = [t["input_ids"][:PROMPT] for t in self._texts("held out", 96)]

    def _texts(self, name, num, stray=0.0):
        """Rows for next-token training; where a walker was led astray, the token is not scored."""
        rng = torch_generator(self.seed, name)
        texts, lawful = self.walks.sample(num, PROMPT + LENGTH, rng, stray=stray)
        return [
            {"input_ids": ids, "mask": mask}
            for ids, mask in zip(texts.tolist(), lawful.tolist(), strict=True)
        ]

    def _learn(self, model, num_texts, num_steps, stray=0.0):
        optim = OptimConfig(learning_rate=6e-3, warmup_steps=10, schedule="cosine")
        config = FinetuneConfig(num_steps=num_steps, optim=optim, seed=self.seed, save_every=None)
        rows = self._texts("data", num_texts, stray)
        finetune(model, rows, config, accelerator=Accelerator(), show_progress=False)

    def distilled(self, **changes):
        student = LlamaForCausalLM(self.student.config)
        student.load_state_dict(self.student.state_dict())
        config = replace(EQUAL, seed=self.seed, **changes)
        distiller = Distiller(
            student, self.teacher, self.tokenizer, config, accelerator=Accelerator()
        )
        distiller.fit(self.rows, show_progress=False)
        return student.eval()

    def own_reverse_kl(self, student):
        """Return E_{y ~ q} KL(q || p) per token on held-out prompts."""
        texts = target_texts(student, self.held_out, params=PARAMS, seed=9, batch_size=96)
        rows = [
            TokenRow(prompt_ids=tuple(p), completion_ids=t)
            for p, t in zip(self.held_out, texts, strict=True)
        ]
        values = forced_values(self.teacher, student, rows, detailed=True)
        return float(torch.cat([v["reverse_kl"] for v in values]).mean())


@pytest.fixture(scope="module")
def settings(make_llama, char_tokenizer):
    return [Setting(seed, make_llama, char_tokenizer) for seed in SEEDS]


@pytest.fixture(scope="module")
def on_policy(settings):
    return [s.distilled(divergence="reverse_kl", on_policy_fraction=1.0) for s in settings]


def test_on_policy_reverse_kl_beats_supervised_forward_kl_on_the_students_texts(
    settings, on_policy
):
    supervised = [s.distilled(on_policy_fraction=0.0) for s in settings]
    before, fixed, own = (
        [s.own_reverse_kl(m) for s, m in zip(settings, models, strict=True)]
        for models in ([s.student for s in settings], supervised, on_policy)
    )
    assert all(o < f < b for o, f, b in zip(own, fixed, before, strict=True)), (before, fixed, own)
    assert mean(own) < 0.9 * mean(fixed)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_acceptance_and_block_efficiency_rise_when_the_draft_is_distilled(
    settings, on_policy, temperature
):
    params = replace(PARAMS, temperature=temperature)
    for setting, after in zip(settings, on_policy, strict=True):
        evaluate = DraftEvaluator(setting.teacher, setting.held_out, params=params)
        first, last = evaluate(setting.student), evaluate(after)
        for name in ("acceptance", "block_efficiency"):
            assert last[name] > first[name], (setting.seed, name, first, last)
