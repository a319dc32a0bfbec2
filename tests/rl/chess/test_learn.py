"""Training on labels."""

import pytest
import torch

from selftrain._core.io import read_jsonl
from selftrain.errors import RunConflictError
from selftrain.ops import HLGauss, OneHot, Support, TwoHot
from selftrain.rl.chess import ChessConfig, fit_chess, learn_chess, measure_chess
from selftrain.rl.chess import learn as learn_module
from selftrain.tasks.chess import encode_positions, puzzles_from_labels, split_by_game
from selftrain.training.optim import learning_rate_at

BINS = Support(0.0, 1.0, 16)
TINY = ChessConfig(width=16, num_heads=1, num_layers=1, num_steps=6, batch_size=8, warmup_steps=2)
HEADS = [HLGauss(BINS), TwoHot(BINS), OneHot(BINS), None]


def equal(first: torch.nn.Module, second: torch.nn.Module) -> bool:
    pairs = zip(first.state_dict().items(), second.state_dict().items(), strict=True)
    return all(a == b and torch.equal(x, y) for (a, x), (b, y) in pairs)


@pytest.mark.parametrize("transform", HEADS, ids=repr)
def test_every_head_learns_and_is_measured_by_the_same_call(rows, transform):
    puzzles = puzzles_from_labels(rows.select(range(100)), margin=0.2)[:2]
    train, test = split_by_game(rows)
    result = learn_chess(train, transform, TINY, test_rows=test.select(range(10)), puzzles=puzzles)
    assert set(result.metrics) == {
        "value_error",
        "value_rmse",
        "top_move_agreement",
        "kendall_tau",
        *(["puzzle_accuracy"] if puzzles else []),
    }
    assert 0 <= result.metrics["value_error"] <= result.metrics["value_rmse"] < 1


def test_the_seed_determines_the_weights(rows):
    some = rows.select(range(50))
    first, again = fit_chess(some, None, TINY), fit_chess(some, None, TINY)
    assert equal(first, again)


def test_a_killed_run_goes_on_to_the_same_weights(rows, tmp_path, monkeypatch):
    some = rows.select(range(50))
    whole = fit_chess(some, HEADS[0], TINY)
    step = learn_module._step

    def dies(*arguments, **named):
        if arguments[4] == 5:
            raise KeyboardInterrupt
        return step(*arguments, **named)

    settings = {"output_dir": tmp_path, "save_every": 2, "log_every": 1}
    monkeypatch.setattr(learn_module, "_step", dies)
    with pytest.raises(KeyboardInterrupt):
        fit_chess(some, HEADS[0], TINY, **settings)
    monkeypatch.setattr(learn_module, "_step", step)
    assert equal(fit_chess(some, HEADS[0], TINY, **settings), whole)
    assert [row["step"] for row in read_jsonl(tmp_path / "metrics.jsonl")] == [1, 2, 3, 4, 5, 6]
    monkeypatch.setattr(learn_module, "_step", None)  # finished: nothing is left to do
    assert equal(fit_chess(some, HEADS[0], TINY, **settings), whole)


@pytest.mark.parametrize("change", ["head", "data", "config"])
def test_a_folder_of_another_run_is_refused(rows, tmp_path, change):
    some = rows.select(range(50))
    fit_chess(some, None, TINY, output_dir=tmp_path)
    other = {
        "head": (some, HEADS[0], TINY),
        "data": (rows.select(range(40)), None, TINY),
        "config": (some, None, ChessConfig()),
    }[change]
    with pytest.raises(RunConflictError):
        fit_chess(*other, output_dir=tmp_path)


def test_batches_hold_the_labels_of_their_positions(rows):
    data = encode_positions(rows.select(range(20)))
    for predicts in ("action_value", "state_value"):
        config = ChessConfig(predicts=predicts, batch_size=50)
        inputs, targets = learn_module._batch(data, config, 3, torch.device("cpu"))
        for place, target in enumerate(targets):
            same = (data.tokens == inputs[0][place]).all(1).nonzero()[:, 0]
            if predicts == "state_value":
                assert target in data.values[same]
            else:
                pair = (data.owners == same) & (data.moves == inputs[1][place])
                assert target in data.move_values[pair]


def test_the_learning_rate_rises_and_falls_to_nothing():
    config = ChessConfig(num_steps=100, warmup_steps=10, learning_rate=2.0)
    rates = [learning_rate_at(step, 100, learn_module._optim(config)) for step in range(100)]
    assert rates[:10] == pytest.approx([2 * i / 10 for i in range(1, 11)])
    assert rates[10:] == pytest.approx([2 * (1 - i / 89) for i in range(90)])


@pytest.mark.slow
@pytest.mark.parametrize("transform", [HLGauss(BINS), None], ids=["hl_gauss", "mse"])
def test_a_few_positions_are_learned_by_heart(rows, transform):
    some = rows.select(range(0, 600, 40))
    config = ChessConfig(
        width=32, num_heads=2, num_layers=2, num_steps=1000, batch_size=64, learning_rate=2e-3
    )
    metrics = measure_chess(fit_chess(some, transform, config), some)
    assert metrics["value_error"] < 0.05
    assert metrics["kendall_tau"] > 0.6
