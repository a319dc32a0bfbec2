"""The outcome reward model: its loss by hand, that it learns, save, load and resume."""

import pytest
import torch
import torch.nn.functional as F

from selftrain.loops import OutcomeRewardConfig, OutcomeRewardModel, train_outcome_reward
from selftrain.training import OptimConfig, TokenRow

FAST = OptimConfig(learning_rate=3e-3)


def rows(num=24):
    """An answer is right if its middle token is even, as half of them are."""
    return [
        TokenRow(
            prompt_ids=(3, 4 + i % 6),
            completion_ids=(20, 4 + i // 6 + i % 5, 1),
            label=float((i // 6 + i % 5) % 2 == 0),
        )
        for i in range(num)
    ]


@pytest.fixture
def make(make_llama, char_tokenizer):
    return lambda seed=0: OutcomeRewardModel(make_llama(seed=seed), char_tokenizer)


def run(model, config, data=None, **options):
    return train_outcome_reward(model, data or rows(), config, show_progress=False, **options)


def changed(**fields):
    fields = {"num_steps": 6, "batch_size": 8, "log_every": 1, "optim": FAST, **fields}
    return OutcomeRewardConfig(**fields)


def parameters(model):
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def test_every_answer_begins_at_one_half(make):
    assert make().score("a=", ["1", "23"]).tolist() == [0.5, 0.5]


@pytest.mark.parametrize("read_at", ["final", "every"])
@pytest.mark.parametrize("normalize", ["sequence", "token"])
def test_the_loss_is_the_joint_one(make, read_at, normalize):
    model = make()
    torch.manual_seed(0)
    torch.nn.init.normal_(model.value_head.weight)
    data = [
        TokenRow(prompt_ids=(3, 4), completion_ids=(5, 6, 7, 1), label=1.0),
        TokenRow(prompt_ids=(3,), completion_ids=(9, 1), label=0.0),
    ]
    total = tokens = 0.0
    for row in data:
        ids = torch.tensor([row.prompt_ids + row.completion_ids])
        out = model.backbone(input_ids=ids, output_hidden_states=True)
        n, start = len(row.completion_ids), len(row.prompt_ids) - 1
        language = F.cross_entropy(out.logits[0, start:-1], ids[0, start + 1 :], reduction="none")
        hidden = out.hidden_states[-1][0, start:-1]
        value = F.binary_cross_entropy_with_logits(
            model.value_head(hidden).squeeze(-1),
            torch.full((n,), row.label),
            reduction="none",
        )
        value = value[-1:].expand(n) if read_at == "final" else value
        share = 1 / n if normalize == "sequence" else 1.0
        total += share * (0.5 * language + value).sum().item()
        tokens += share * n
    config = changed(
        num_steps=1, batch_size=2, language_weight=0.5, read_at=read_at, normalize=normalize
    )
    assert run(model, config, data).metrics["loss"] == pytest.approx(total / tokens, rel=1e-5)


@pytest.mark.parametrize("read_at", ["final", "every"])
def test_it_learns_which_answers_are_right(make, read_at):
    model, data = make(), rows()
    report = run(model, changed(num_steps=150, read_at=read_at), eval_rows=data)
    assert report.metrics["eval/accuracy"] == 1.0
    labels = torch.tensor([row.label for row in data], dtype=torch.float64)
    scores = model.score_rows(data)
    assert scores[labels == 1].min() > 0.8
    assert scores[labels == 0].max() < 0.2


def test_scores_do_not_depend_on_what_shares_the_batch(make):
    model, data = make(), rows()
    torch.manual_seed(0)
    torch.nn.init.normal_(model.value_head.weight)
    together = model.score_rows(data)
    alone = torch.cat([model.score_rows([row]) for row in data])
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-6)
    assert 0 < together.min() < together.max() < 1


def test_micro_batches_equal_one_batch(make):
    reports = [run(make(), changed(micro_batch_size=size)) for size in (None, 3)]
    a, b = ([row["loss"] for row in report.history] for report in reports)
    assert a == pytest.approx(b, abs=1e-5)


def test_an_interrupted_run_continues_to_the_same_bits(make, tmp_path):
    class Interrupted(list):
        def __getitem__(self, index):
            self.reads = getattr(self, "reads", 0) + 1
            if self.reads > 30:
                raise KeyboardInterrupt
            return super().__getitem__(index)

    config = changed(save_every=1)
    whole, broken, resumed = make(), make(), make()
    run(whole, config, output_dir=tmp_path / "a")
    with pytest.raises(KeyboardInterrupt):
        run(broken, config, Interrupted(rows()), output_dir=tmp_path / "b")
    run(resumed, config, output_dir=tmp_path / "b")
    assert torch.equal(parameters(whole), parameters(resumed))


def test_a_saved_model_scores_alike(make, tmp_path):
    model = make()
    run(model, changed())
    model.save(tmp_path / "orm")
    loaded = OutcomeRewardModel.load(tmp_path / "orm")
    texts = ["1", "23", "4+5"]
    assert torch.equal(loaded.score("a=", texts), model.score("a=", texts))
    assert loaded.best("a=", texts) == int(model.score("a=", texts).argmax())
    with pytest.raises(ValueError, match="holds no outcome reward model"):
        OutcomeRewardModel.load(tmp_path)


def test_rows_without_a_label_are_errors(make):
    with pytest.raises(ValueError, match=r"rows\[0\] has no label"):
        run(make(), changed(), [TokenRow(prompt_ids=(3,), completion_ids=(4,))])
    with pytest.raises(ValueError, match="rows is empty"):
        train_outcome_reward(make(), [], changed(), show_progress=False)


@pytest.mark.parametrize(
    ("fields", "message"),
    [({"read_at": "first"}, "read_at must be one of"), ({"language_weight": -1.0}, "must satisfy")],
)
def test_settings_out_of_range_are_errors(fields, message):
    with pytest.raises(ValueError, match=message):
        OutcomeRewardConfig(**fields)
