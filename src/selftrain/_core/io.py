"""Files that are either whole or absent: atomic writes, JSONL, tensors, run folders."""

import contextlib
import json
import os
import platform
import shutil
import sys
import time
from collections.abc import Iterable, Iterator
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


def write_text(path: str | Path, text: str) -> None:
    """Write ``text`` to ``path`` atomically: a crash leaves the old file or the new one."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.part")
    try:
        part.write_text(text, encoding="utf-8")
        os.replace(part, path)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise _cannot_write(path, error) from error


def write_json(path: str | Path, data: Any) -> None:
    """Write JSON to ``path`` atomically."""
    write_text(path, json.dumps(data, indent=2, sort_keys=True) + "\n")


def read_json(path: str | Path) -> Any:
    """Read a JSON file."""
    return json.loads(Path(path).read_text(encoding="utf-8"))


@contextlib.contextmanager
def atomic_folder(path: str | Path) -> Iterator[Path]:
    """Yield a temporary folder that becomes ``path`` when the block ends without an error.

    An existing ``path`` is replaced. After an error nothing is left behind.
    """
    path = Path(path)
    part = path.with_name(f".{path.name}.part")
    old = path.with_name(f".{path.name}.old")
    try:
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(parents=True)
        yield part
        shutil.rmtree(old, ignore_errors=True)
        if path.exists():
            path.rename(old)
        part.rename(path)
        shutil.rmtree(old, ignore_errors=True)
    except OSError as error:
        shutil.rmtree(part, ignore_errors=True)
        raise _cannot_write(path, error) from error
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise


def read_jsonl(path: str | Path) -> list[dict[str, Any]]:
    """Read a JSONL file; a last line torn by a crash is dropped, any other bad line is an error."""
    path = Path(path)
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8").split("\n")
    rows = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError as error:
            if number == len(lines):  # no newline after it: the write was cut off
                break
            raise ValueError(f"{path}:{number} is not JSON: {error}") from error
    return rows


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

    path = Path(path)
    part = path.with_name(f".{path.name}.part")
    try:
        plain = {k: v.detach().contiguous() for k, v in tensors.items()}
        save_file(plain, str(part), metadata=metadata)
        os.replace(part, path)
    except Exception as error:  # safetensors raises its own type for a full disk
        part.unlink(missing_ok=True)
        raise _cannot_write(path, error) from error


def load_tensors(path: str | Path) -> "dict[str, torch.Tensor]":
    """Read what :func:`save_tensors` wrote."""
    from safetensors.torch import load_file

    return load_file(str(path))


def manifest(*, seed: int) -> dict[str, Any]:
    """Return what a reader needs to repeat a run: versions, hardware, threads, command, time."""
    import torch

    gpu = torch.cuda.get_device_name(0) if torch.cuda.is_available() else None
    packages = ("selftrain", "torch", "transformers", "tokenizers", "accelerate", "numpy")
    return {
        "seed": seed,
        "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpu": _cpu_name(),
        "num_threads": torch.get_num_threads(),
        "gpu": gpu,
        "versions": {name: _version(name) for name in packages},
    }


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:  # run from a source tree
        return None


def _cpu_name() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def _cannot_write(path: Path, error: Exception) -> OSError:
    """Say what could not be written and how much room there is; nothing half-written is left."""
    if isinstance(error, OSError) and error.errno is None:
        return error  # already ours
    with contextlib.suppress(OSError):
        free = shutil.disk_usage(path.parent).free / 1e6
        return OSError(f"could not write {path} ({error}); the disk has {free:.0f} MB free.")
    return OSError(f"could not write {path} ({error}).")
