"""``selftrain train-dqn``: runs over seeds, continues what was killed, presets, and errors."""

import json

import pytest
from PIL import Image

from selftrain import cli
from selftrain.cli import train_dqn
from selftrain.cli.train_dqn import Parts, make_head
from selftrain.ops import C51, HLGauss, Support, TwoHot
from selftrain.rl import DQN, DQNConfig

QUICK = "--env selftrain/Catch-v0 --num-env-steps 300 --num-envs 4 --eval-every 100"
QUICK += " --num-eval-episodes 4 --save-every 150 --warmup-steps 100 --batch-size 8"


def run(folder, *words):
    return cli.main(["train-dqn", *QUICK.split(), "--output-dir", str(folder), *map(str, words)])


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("finished") / "run"
    assert run(folder, "--num-seeds", 2) == 0
    return folder


def test_a_run_leaves_a_report_with_a_row_for_each_seed_and_a_curve(finished):
    report = (finished / "report.md").read_text()
    assert "DQN, hl_gauss on selftrain/Catch-v0" in report
    assert "mean of 2 seeds with a 95 % interval" in report
    assert "| batch_size | 8 |" in report
    with Image.open(finished / "learning_curve.png") as picture:
        assert picture.width > 400
    assert json.loads((finished / "summary.json").read_text()).keys() == {"0", "1"}
    assert (finished / "seed-001/metrics.jsonl").exists()


def test_the_same_command_trains_nothing_again(finished, monkeypatch, capsys):
    monkeypatch.setattr(DQN, "learn", None)
    assert run(finished, "--num-seeds", 2) == 0
    assert "Return at the end" in capsys.readouterr().out


def test_a_killed_command_continues_to_the_same_weights(finished, tmp_path, monkeypatch):
    learn = DQN.learn

    def interrupt(self, **kwargs):
        if self.num_updates == 30:
            raise KeyboardInterrupt
        return learn(self, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(DQN, "learn", interrupt)
        assert run(tmp_path / "run") == 130
    assert run(tmp_path / "run") == 0
    ours, theirs = (f / "seed-000/agent" for f in (tmp_path / "run", finished))
    for name in ("replay.safetensors", *[p.name for p in theirs.glob("checkpoint-*")]):
        assert (ours / name).read_bytes() == (theirs / name).read_bytes()


def test_a_folder_is_not_continued_with_other_settings(finished, capsys):
    assert run(finished, "--num-seeds", 2, "--head", "mse") == 2
    assert "head: 'hl_gauss' -> 'mse'" in capsys.readouterr().err
    assert run(finished, "--num-seeds", 2, "--discount", 0.9) == 2
    assert "discount: 0.99 -> 0.9" in capsys.readouterr().err


def test_presets_go_by_the_game_and_options_override_them():
    config = train_dqn._parse(["--env", "atari:pong"]).config
    assert config == DQNConfig.atari()
    config = train_dqn._parse(["--env", "atari:pong", "--preset", "rainbow", "--stack", "2"]).config
    assert (config.stack, config.dueling, config.num_steps) == (2, True, 3)
    assert train_dqn._parse(["--env", "CartPole-v1"]).config == DQNConfig.small()


def test_heads_are_those_of_their_names():
    def head(name, env="atari:pong", **options):
        return make_head(Parts(env=env, head=name, **options))

    support = Support(-10.0, 10.0, 51)
    assert head("mse") is None
    assert head("two_hot") == TwoHot(support)
    assert head("c51", low=-5.0) == C51(Support(-5.0, 10.0, 51))
    assert head("hl_gauss", num_bins=11, sigma_ratio=1.0) == HLGauss(Support(-10.0, 10.0, 11), 1.0)
    assert head("mse", env="Unknown-v0") is None


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--env", "Acrobot-v1"], "needs --low and --high for Acrobot-v1"),
        (["--env", "Nothing-v0", "--head", "mse"], "Nothing"),
        (["--env", "CartPole-v1", "--encoder", "impala"], "--encoder impala reads frames"),
        (["--num-seeds", 0], "num_seeds"),
        (["--target-every", 5], "set one of them"),
    ],
)
def test_what_cannot_be_run_is_a_sentence(words, message, tmp_path, capsys):
    assert run(tmp_path / "run", *words) == 2
    assert message in capsys.readouterr().err
