"""A run's folder: which run it holds, and whether this is the same one."""

from pathlib import Path
from typing import Any

from selftrain._core.config import differences, to_dict
from selftrain._core.io import manifest, read_json, write_json
from selftrain.errors import RunConflictError


def check_run(folder: str | Path, config: Any) -> None:
    """Raise unless the folder is free, or holds a run of this very configuration.

    Raises:
        RunConflictError: If it holds another one; the message lists the fields that differ.
    """
    path = Path(folder) / "config.json"
    if not path.exists():
        return
    changed = differences(read_json(path), to_dict(config))
    if changed:
        raise RunConflictError(
            f"{folder} holds a run with another configuration:\n  "
            + "\n  ".join(changed)
            + "\nRestore these values to continue it, or choose another folder."
        )


def open_run(folder: str | Path, config: Any, *, seed: int) -> None:
    """Begin or continue the run in ``folder``: write ``config.json`` and ``manifest.json``.

    Args:
        folder: The run's folder, made if absent.
        config: The run's frozen dataclass.
        seed: Its seed, for the manifest.

    Raises:
        RunConflictError: If the folder holds a run with another configuration. Nothing is written
            then.
    """
    check_run(folder, config)
    path = Path(folder) / "config.json"
    if not path.exists():
        write_json(path.with_name("manifest.json"), manifest(seed=seed))
        write_json(path, to_dict(config))
