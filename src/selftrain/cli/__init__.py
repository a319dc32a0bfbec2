"""The command line: ``selftrain <command>``.

Nothing is imported here but the standard library, so that help and errors come at once. A command
lives in ``selftrain.cli.<command>``, with ``_`` for ``-``, and offers ``main(args: list[str]) -> int``.
"""

import difflib
import importlib
import sys
import traceback

from selftrain import __version__
from selftrain.errors import SelftrainError

COMMANDS = {
    "bench": "Measure speed: bench specdec compares speculative decoders.",
    "distill": "Distil a teacher into a student on your own rows.",
    "distillspec": "Distil a draft from a target, decode with it, and report the speed-up.",
    "restem": "Let a model improve on its own right answers to problems that can be checked.",
    "train-dqn": "Train a value agent on a game, with any head: DQN and the parts of Rainbow.",
    "vstar": "Train a generator on its right answers, and a verifier on right against wrong.",
}

_USER_ERRORS = (ValueError, TypeError, OSError, SelftrainError)


def main(argv: list[str] | None = None) -> int:
    """Run one command and return the exit code of the process.

    Args:
        argv: The words after the program's name; None takes them from the command line.

    Returns:
        0 after success, 2 after an error that the user can mend, 130 after Ctrl-C.
    """
    args = list(sys.argv[1:] if argv is None else argv)
    debug = args[:1] == ["--debug"]
    if debug:
        args = args[1:]
    if not args or args[0] in ("-h", "--help"):
        print(_help())
        return 0 if args else 2
    if args[0] == "--version":
        print(f"selftrain {__version__}")
        return 0
    if args[0] not in COMMANDS:
        print(_unknown(args[0]), file=sys.stderr)
        return 2
    return _run(args[0], args[1:], debug=debug)


def _run(command: str, args: list[str], *, debug: bool) -> int:
    try:
        module = command.replace("-", "_")
        return importlib.import_module(f"selftrain.cli.{module}").main(args)
    except KeyboardInterrupt:
        print("\nStopped. The same command continues the run.", file=sys.stderr)
        return 130
    except _USER_ERRORS as error:
        if debug:
            traceback.print_exc()
        message = str(error) or type(error).__name__
        print(f"selftrain {command}: {message}", file=sys.stderr)
        if not debug:
            print(f"(selftrain --debug {command} ... shows where)", file=sys.stderr)
        return 2


def _help() -> str:
    width = max(map(len, COMMANDS))
    table = [f"  {name:<{width}}  {text}" for name, text in COMMANDS.items()]
    return "\n".join(
        [
            "usage: selftrain [--debug] <command> [options]",
            "",
            "Models that learn from what they generate themselves.",
            "",
            "commands:",
            *table,
            "",
            "options:",
            "  -h, --help  Show this text; after a command, the options of that command.",
            "  --version   Show the version.",
            "  --debug     Show the full traceback of an error.",
        ]
    )


def _unknown(word: str) -> str:
    near = difflib.get_close_matches(word, COMMANDS, n=1)
    guess = f" Did you mean {near[0]!r}?" if near else ""
    kind = "option" if word.startswith("-") else "command"
    return (
        f"selftrain: there is no {kind} {word!r}.{guess} "
        f"Commands: {', '.join(COMMANDS)}. See selftrain --help."
    )
