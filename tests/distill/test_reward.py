"""Rewards beside the divergence (GKD, equation 5)."""

import dataclasses

import pytest
import torch
from samplers import FixedSampler

from selftrain.decoding import SamplingParams
from selftrain.distill import DistillConfig, Distiller
from selftrain.distill.losses import step_losses
from selftrain.distill.reward import advantages
from selftrain.training import OptimConfig
from selftrain.training.targets import LogitTargets

ROWS = [{"prompt_ids": [3, 4, 5]}, {"prompt_ids": [8]}, {"prompt_ids": [13, 14]}]
TEXTS = {(3, 4, 5): [6, 7, 1], (8,): [9, 10, 11, 12, 1], (13, 14): [15, 1]}
REWARDS = {"d": 1.0, "g": -0.5}  # by the text's first character
CONFIG = DistillConfig(
    divergence="reverse_kl",
    reward_weight=1.0,
    num_steps=4,
    batch_size=3,
    log_every=1,
    sampling=SamplingParams(max_new_tokens=6),
    optim=OptimConfig(learning_rate=1e-2),
)


def reward(rows, texts):
    return [REWARDS.get(text[:1], 0.0) for text in texts]


def make(student, teacher, tokenizer, config, **kwargs):
    kwargs = {"sampler": FixedSampler(TEXTS), "reward": reward, **kwargs}
    return Distiller(student, teacher, tokenizer, config, **kwargs)


def log_likelihoods(model):
    """Each text's log-probability, its tokens summed."""
    found = []
    for prompt, text in TEXTS.items():
        logits = model(torch.tensor([[*prompt, *text]])).logits[0, len(prompt) - 1 : -1]
        found.append(logits.double().log_softmax(-1).gather(1, torch.tensor(text)[:, None]).sum())
    return torch.stack(found).detach()


def test_the_expected_gradient_is_that_of_the_expected_reward():
    rng = torch.Generator().manual_seed(0)
    logits = torch.randn(1, 6, generator=rng, requires_grad=True)
    rewards = torch.randn(6, generator=rng)
    config = DistillConfig(reward_weight=1.0)
    probs = logits.detach().softmax(-1)[0]
    for baseline in (0.0, 3.0):  # whatever is subtracted
        expected = torch.zeros_like(logits)
        for y in range(6):
            losses = step_losses(
                LogitTargets(logits),
                None,
                labels=torch.tensor([y]),
                weights=torch.ones(1),
                config=config,
                kind="jsd",
                gains=(rewards[y] - baseline)[None],
            )
            expected += probs[y] * torch.autograd.grad(losses.objective, logits)[0]
        exact = torch.autograd.grad(-(logits.softmax(-1) @ rewards).sum(), logits)[0]
        torch.testing.assert_close(expected, exact, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("normalize", ["sequence", "token"])
def test_the_loss_is_the_advantage_times_the_whole_sequences_likelihood(
    student, teacher, char_tokenizer, normalize
):
    config = dataclasses.replace(CONFIG, normalize=normalize)
    log_q = log_likelihoods(student)
    metrics = make(student, teacher, char_tokenizer, config).step(ROWS)
    texts = char_tokenizer.batch_decode(list(TEXTS.values()), skip_special_tokens=True)
    scores = torch.tensor(reward(ROWS, texts), dtype=torch.float64)
    assert len(set(scores.tolist())) > 1
    total = -((scores - scores.mean()) * log_q).sum().item()
    num = len(TEXTS) if normalize == "sequence" else sum(map(len, TEXTS.values()))
    assert metrics["loss"] == pytest.approx(total / num, rel=1e-4)
    assert metrics["reward/mean"] == pytest.approx(scores.mean().item())


def test_a_row_of_weight_zero_has_no_say_in_the_baseline(make_llama, teacher, char_tokenizer):
    values = {3: 1.0, 8: 0.5, 13: 100.0}

    def by_prompt(rows, texts):
        return [values[row["prompt_ids"][0]] for row in rows]

    absent = {**ROWS[2], "weight": 0.0}
    found = [
        make(make_llama(), teacher, char_tokenizer, CONFIG, reward=by_prompt).step(rows)
        for rows in (ROWS[:2], [*ROWS[:2], absent])
    ]
    for name in ("loss", "reward/mean", "grad_norm"):
        assert found[0][name] == pytest.approx(found[1][name], rel=1e-5)


def test_a_share_of_the_reward_adds_to_a_share_of_the_divergence(
    make_llama, teacher, char_tokenizer
):
    def loss(weight):
        config = dataclasses.replace(CONFIG, reward_weight=weight)
        kwargs = {"reward": None} if weight == 0 else {}
        return make(make_llama(), teacher, char_tokenizer, config, **kwargs).step(ROWS)["loss"]

    assert loss(0.25) == pytest.approx(0.75 * loss(0.0) + 0.25 * loss(1.0), rel=1e-4)


def test_the_divergence_is_reported_apart_from_the_reward(student, teacher, char_tokenizer):
    config = dataclasses.replace(CONFIG, reward_weight=0.5)
    metrics = make(student, teacher, char_tokenizer, config).step(ROWS)
    assert metrics["divergence/student"] == pytest.approx(metrics["distance"])
    assert metrics["divergence/student"] > 0


def test_the_policy_gradient_alone_asks_no_teacher(student, teacher, char_tokenizer):
    distiller = make(student, teacher, char_tokenizer, CONFIG)
    teacher.forward = None
    metrics = distiller.step(ROWS)
    assert "reward/mean" in metrics
    assert not [name for name in metrics if name.startswith("divergence/")]


def test_the_student_comes_to_write_what_is_rewarded(make_llama, teacher, char_tokenizer):
    config = dataclasses.replace(
        CONFIG, num_steps=25, batch_size=16, sampling=SamplingParams(max_new_tokens=4)
    )

    def vowels(rows, texts):
        return [sum(c in "aeiou" for c in text) for text in texts]

    rows = [{"prompt_ids": [3 + i % 30]} for i in range(16)]
    for seed in range(3):
        student = make_llama(seed=seed)
        distiller = Distiller(
            student, teacher, char_tokenizer, dataclasses.replace(config, seed=seed), reward=vowels
        )
        history = distiller.fit(rows, show_progress=False).history
        begun, ended = (
            sum(row["reward/mean"] for row in part) for part in (history[:5], history[-5:])
        )
        assert ended > 2 * begun


def test_leave_one_out_is_unbiased_where_the_batch_mean_is_not():
    torch.manual_seed(0)
    # A two-armed bandit: the gradient of the expected reward with respect to the logit is q(1-q).
    q, num_rows = 0.3, 4
    exact = q * (1 - q)
    for name, factor in (("leave_one_out", 1.0), ("batch", 1 - 1 / num_rows)):
        total = 0.0
        for outcome in range(2**num_rows):
            ones = [outcome >> i & 1 for i in range(num_rows)]
            weight = q ** sum(ones) * (1 - q) ** (num_rows - sum(ones))
            found = advantages(dict(enumerate(map(float, ones))), name)
            total += weight * sum(found[i] * (ones[i] - q) for i in range(num_rows)) / num_rows
        assert total == pytest.approx(factor * exact, rel=1e-9)


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (lambda rows, texts: [1.0], "returned 1 numbers for 3 texts"),
        (lambda rows, texts: [float("nan")] * len(texts), "returned nan for the text"),
    ],
)
def test_bad_rewards_are_errors(student, teacher, char_tokenizer, answer, message):
    with pytest.raises(ValueError, match=message):
        make(student, teacher, char_tokenizer, CONFIG, reward=answer).step(ROWS)


def test_a_reward_and_its_weight_go_together(student, teacher, char_tokenizer):
    with pytest.raises(ValueError, match=r"reward_weight=1\.0 needs a reward"):
        make(student, teacher, char_tokenizer, CONFIG, reward=None)
    config = dataclasses.replace(CONFIG, reward_weight=0.0)
    with pytest.raises(ValueError, match="no effect with reward_weight=0"):
        make(student, teacher, char_tokenizer, config)
