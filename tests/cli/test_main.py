"""The command line's own behaviour, with a command made up for the test."""

import sys
import types

import pytest

import selftrain
from selftrain import cli
from selftrain.errors import MissingExtraError, SelftrainError


@pytest.fixture
def command(monkeypatch):
    """Install ``selftrain fake``, which calls what the test puts into ``run``."""
    module = types.ModuleType("selftrain.cli.fake")
    module.main = lambda args: module.run(args)
    monkeypatch.setitem(sys.modules, "selftrain.cli.fake", module)
    monkeypatch.setitem(cli.COMMANDS, "fake", "A made-up command.")
    return module


def failing(error):
    def run(args):
        raise error

    return run


def test_help_lists_every_command(capsys):
    assert cli.main(["--help"]) == 0
    out = capsys.readouterr().out
    assert all(f"{name} " in out and text in out for name, text in cli.COMMANDS.items())


def test_no_command_shows_help_and_fails(capsys):
    assert cli.main([]) == 2
    assert "usage:" in capsys.readouterr().out


def test_version(capsys):
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"selftrain {selftrain.__version__}\n"


def test_an_unknown_command_is_told_with_its_nearest_neighbour(capsys):
    assert cli.main(["distilspec"]) == 2
    assert "Did you mean 'distillspec'?" in capsys.readouterr().err


def test_an_unknown_option_is_not_called_a_command(capsys):
    assert cli.main(["--no-such"]) == 2
    assert "no option '--no-such'" in capsys.readouterr().err


def test_arguments_and_exit_code_are_passed_through(command):
    seen = []
    command.run = lambda args: seen.append(args) or 7
    assert cli.main(["fake", "--a", "1"]) == 7
    assert seen == [["--a", "1"]]


def test_the_words_of_the_process_are_the_default(command, monkeypatch):
    command.run = lambda args: len(args)
    monkeypatch.setattr(sys, "argv", ["selftrain", "fake", "x"])
    assert cli.main() == 1


@pytest.mark.parametrize(
    "error",
    [
        ValueError("beta must satisfy 0 <= beta <= 1, got 2."),
        TypeError("steps must be an integer."),
        OSError("could not write."),
        FileNotFoundError(2, "No such file", "corpus.txt"),
        SelftrainError("no."),
        MissingExtraError("pip install it."),
    ],
    ids=lambda error: type(error).__name__,
)
def test_an_error_of_the_user_is_one_message_without_a_traceback(command, capsys, error):
    command.run = failing(error)
    assert cli.main(["fake"]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith(f"selftrain fake: {error}\n")
    assert "Traceback" not in captured.err


def test_debug_shows_the_traceback(command, capsys):
    command.run = failing(ValueError("bad"))
    assert cli.main(["--debug", "fake"]) == 2
    assert "Traceback" in capsys.readouterr().err


def test_a_defect_of_ours_keeps_its_traceback(command):
    command.run = failing(KeyError("x"))
    with pytest.raises(KeyError):
        cli.main(["fake"])


def test_ctrl_c_says_how_to_go_on(command, capsys):
    command.run = failing(KeyboardInterrupt())
    assert cli.main(["fake"]) == 130
    assert "same command continues" in capsys.readouterr().err
