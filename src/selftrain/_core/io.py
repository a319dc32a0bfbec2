"""Files that are either whole or absent: atomic writes, JSONL, tensors, run folders."""

import contextlib
import json
import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

if TYPE_CHECKING:
    import torch


def write_text(path: str | Path, text: str) -> None:
    """Write ``text`` to ``path`` as UTF-8, atomically: a crash leaves the old file or the new."""
    write_bytes(path, text.encode("utf-8"))


def write_bytes(path: str | Path, data: bytes) -> None:
    """Write ``data`` to ``path`` atomically: a crash leaves the old file or the new one."""
    with _replacing(Path(path)) as part, part.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())  # some file systems report a full disk only here


def write_json(path: str | Path, data: Any) -> None:
    """Write JSON to ``path`` atomically."""
    write_text(path, json.dumps(data, indent=2, sort_keys=True) + "\n")


def read_json(path: str | Path) -> Any:
    """Read a JSON file.

    Raises:
        ValueError: If the file is not JSON; the message names it.
    """
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}") from error


@contextlib.contextmanager
def atomic_folder(path: str | Path) -> Iterator[Path]:
    """Yield a temporary folder that becomes ``path`` when the block ends without an error.

    An existing ``path`` is replaced. After an error the old folder is there and nothing else. A
    folder cannot be exchanged in one step everywhere, so a process killed between the two renames
    leaves the old folder under a hidden name: :func:`recover_folder` brings it back.
    """
    path = Path(path)
    part, old = _part(path), _old(path)
    try:
        recover_folder(path)
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(parents=True)
        yield part
        if path.exists():
            path.rename(old)
        part.rename(path)
        shutil.rmtree(old, ignore_errors=True)
    except BaseException as error:
        shutil.rmtree(part, ignore_errors=True)
        with contextlib.suppress(OSError):
            recover_folder(path)
        if isinstance(error, OSError):
            _raise_cannot_write(path, error)
        raise


def recover_folder(path: str | Path) -> None:
    """Undo a replacement of ``path`` by :func:`atomic_folder` that was killed half-way.

    Call it before reading a folder that an earlier process may have been replacing.
    """
    path = Path(path)
    old = _old(path)
    if not old.exists():
        return
    if path.exists():
        shutil.rmtree(old)  # killed after the second rename: the new folder is whole
    else:
        old.rename(path)


def read_jsonl(path: str | Path, *, complete: bool = False) -> list[dict[str, Any]]:
    """Read a JSONL file; a last line torn by a crash is dropped, any other bad line is an error.

    With ``complete``, for files that no run of ours was writing, a torn line is an error too.
    """
    path = Path(path)
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8").split("\n")
    rows = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            if number == len(lines) and not complete:  # no newline after it: it was cut off
                break
            raise ValueError(f"{path}:{number} is not JSON: {error}") from error
        if not isinstance(row, dict):
            raise ValueError(f"{path}:{number} must be a JSON object, got {line.strip()[:60]!r}.")
        rows.append(row)
    return rows


def append_jsonl(path: str | Path, row: dict[str, Any]) -> None:
    """Add one row to a JSONL file. A row cut off by a crash is dropped by :func:`read_jsonl`."""
    append_bytes(path, (json.dumps(row) + "\n").encode("utf-8"))


def append_bytes(path: str | Path, data: bytes) -> None:
    """Add ``data`` at the end of a file and hand it to the system: all of it or, on error, none.

    What was handed over survives the process, not a loss of power: see :func:`sync_file`.
    """
    path = Path(path)
    size = path.stat().st_size if path.exists() else 0
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("ab") as file:
            file.write(data)
    except OSError as error:
        with contextlib.suppress(OSError):
            os.truncate(path, size)  # a part of the data would spoil what comes next
        _raise_cannot_write(path, error)


def sync_file(path: str | Path) -> None:
    """Wait until what was written to a file is on the disk, which may be found full only now."""
    with explained_errors(path), Path(path).open("rb+") as file:
        os.fsync(file.fileno())


@contextlib.contextmanager
def explained_errors(path: str | Path) -> Iterator[None]:
    """Tell an ``OSError`` in the block as a failure to write ``path``, with the remedy."""
    try:
        yield
    except OSError as error:
        _raise_cannot_write(Path(path), error)


def write_jsonl(path: str | Path, rows: Iterable[dict[str, Any]]) -> None:
    """Write rows to a JSONL file atomically."""
    write_text(path, "".join(json.dumps(row) + "\n" for row in rows))


def save_tensors(
    path: str | Path,
    tensors: "dict[str, torch.Tensor]",
    *,
    metadata: dict[str, str] | None = None,
) -> None:
    """Write named tensors, and ``metadata`` in the header, to one safetensors file atomically."""
    from safetensors.torch import save_file

    plain = {k: v.detach().contiguous() for k, v in tensors.items()}
    with _replacing(Path(path)) as part:
        save_file(plain, str(part), metadata=metadata)


def load_tensors(path: str | Path) -> "dict[str, torch.Tensor]":
    """Read what :func:`save_tensors` wrote."""
    from safetensors.torch import load_file

    return load_file(str(path))


def manifest(*, seed: int) -> dict[str, Any]:
    """Return what a reader needs to repeat a run: versions, hardware, threads, command, time."""
    import torch

    from selftrain import __version__

    gpu = torch.cuda.get_device_name(0) if torch.cuda.is_available() else None
    packages = ("torch", "transformers", "tokenizers", "accelerate", "numpy")
    return {
        "seed": seed,
        "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpu": _cpu_name(),
        "num_threads": torch.get_num_threads(),
        "gpu": gpu,
        "git": _git_commit(),
        "versions": {"selftrain": __version__, **{n: metadata.version(n) for n in packages}},
    }


def _git_commit() -> str | None:
    """Return the commit of the checkout that this source file is part of, if it is."""
    checkout = Path(__file__).parents[3]
    if not (checkout / ".git").exists():
        return None
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        command = ["git", "-C", str(checkout), "describe", "--always", "--dirty", "--abbrev=12"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)  # noqa: S603
        return done.stdout.strip()
    return None


def _cpu_name() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def _part(path: Path) -> Path:
    return path.with_name(f".{path.name}.part")


def _old(path: Path) -> Path:
    return path.with_name(f".{path.name}.old")


@contextlib.contextmanager
def _replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary file name; what was written there becomes ``path`` unless it fails."""
    part = _part(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield part
        os.replace(part, path)
    except BaseException as error:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)
        # safetensors raises its own type for a full disk
        if isinstance(error, OSError) or type(error).__name__ == "SafetensorError":
            _raise_cannot_write(path, error)
        raise


class _CannotWriteError(OSError):
    """A write that failed, told with the remedy; an ``OSError`` with the same ``errno``."""

    def __str__(self) -> str:
        return str(self.strerror)


def _raise_cannot_write(path: Path, error: BaseException) -> NoReturn:
    """Say what could not be written, how much room there is and what is left on the disk."""
    if isinstance(error, _CannotWriteError):
        raise error
    free = ""
    with contextlib.suppress(OSError):
        free = f" The disk has {shutil.disk_usage(path.parent).free / 1e6:.0f} MB free."
    text = (
        f"could not write {path} ({error}).{free} Nothing half-written is left and what was there "
        "before is unchanged; make room or choose another folder, then run the same command again."
    )
    raise _CannotWriteError(getattr(error, "errno", None), text) from error
