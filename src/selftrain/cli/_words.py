"""What the commands read of the command line before they parse it."""

import inspect
from collections.abc import Sequence


def presets_of(config: type) -> tuple[str, ...]:
    """Return the class methods of a configuration that need no argument: the published settings."""
    return tuple(
        name
        for name, value in vars(config).items()
        if isinstance(value, classmethod)
        and not name.startswith("_")
        and all(
            p.default is not p.empty
            for p in inspect.signature(getattr(config, name)).parameters.values()
        )
    )


def word_after(args: Sequence[str], option: str) -> str | None:
    """Return what the last ``--option word`` or ``--option=word`` gives; None if there is none."""
    found = None
    for i, word in enumerate(args):
        if word.startswith(f"{option}="):
            found = word.partition("=")[2]
        elif word == option and i + 1 < len(args):
            found = args[i + 1]
    return found


def preset_in(args: Sequence[str], presets: Sequence[str]) -> str | None:
    """Return the preset that the words name, if it is one; the parser refuses all others."""
    found = word_after(args, "--preset")
    return found if found in presets else None
