"""Frozen dataclasses to plain data and back, strictly: an unknown key is an error."""

import dataclasses
import functools
import hashlib
import json
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from selftrain._core.io import read_json, write_text

ConfigT = TypeVar("ConfigT")


def to_dict(config: Any) -> dict[str, Any]:
    """Return a config as JSON-ready data; nested configs become dicts, tuples become lists."""
    return {f.name: _plain(getattr(config, f.name)) for f in dataclasses.fields(config)}


def from_dict(cls: type[ConfigT], data: dict[str, Any]) -> ConfigT:
    """Build a config of class ``cls`` from :func:`to_dict` data.

    Raises:
        TypeError: If ``data`` is not a dict.
        ValueError: If ``data`` has a key that ``cls`` does not know.
    """
    if not isinstance(data, dict):
        raise TypeError(f"{cls.__name__} is read from a JSON object, got {data!r}.")
    known = {f.name for f in dataclasses.fields(cls)}  # pyrefly: ignore[bad-argument-type]
    unknown = sorted(set(data) - known)
    if unknown:
        raise ValueError(
            f"{cls.__name__} has no field {', '.join(unknown)}; it has {', '.join(sorted(known))}."
        )
    hints = _hints(cls)
    return cls(**{name: _typed(hints[name], value) for name, value in data.items()})


def save_json(config: Any, path: Path) -> None:
    """Write a config to ``path`` as JSON, atomically."""
    write_text(path, json.dumps(to_dict(config), indent=2) + "\n")


def load_json(cls: type[ConfigT], path: Path) -> ConfigT:
    """Read a config that :func:`save_json` wrote."""
    return from_dict(cls, read_json(path))


def fingerprint(data: Any) -> str:
    """Return 16 hexadecimal digits that change with any value in ``data``, a config or plain."""
    text = json.dumps(_plain(data), sort_keys=True, ensure_ascii=False)
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


def differences(old: dict[str, Any], new: dict[str, Any], prefix: str = "") -> list[str]:
    """Return one line ``field: old -> new`` for every value that differs, nested fields dotted."""
    lines = []
    for key in sorted(set(old) | set(new)):
        a, b = old.get(key, "(absent)"), new.get(key, "(absent)")
        if isinstance(a, dict) and isinstance(b, dict):
            lines += differences(a, b, f"{prefix}{key}.")
        elif a != b:
            lines.append(f"{prefix}{key}: {a!r} -> {b!r}")
    return lines


@functools.cache
def _hints(cls: type) -> dict[str, Any]:
    """Return the annotations of a class, which take a while to evaluate."""
    return typing.get_type_hints(cls)


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return to_dict(value)
    if isinstance(value, (tuple, list)):
        return [_plain(v) for v in value]
    if isinstance(value, Mapping):
        return {key: _plain(v) for key, v in value.items()}
    if isinstance(value, Path):
        return str(value)
    return value


def _typed(hint: Any, value: Any) -> Any:
    """Undo :func:`_plain` for one field, guided by its annotation."""
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        fitting = (arm for arm in typing.get_args(hint) if _came_from(arm, value))
        hint = next(fitting, None)
    if isinstance(value, dict) and dataclasses.is_dataclass(hint):
        return from_dict(typing.cast(type, hint), value)
    if isinstance(value, list) and (typing.get_origin(hint) or hint) is tuple:
        inner = typing.get_args(hint) or (Any, ...)
        if len(inner) == 2 and inner[1] is ...:
            inner = (inner[0],) * len(value)
        if len(inner) != len(value):
            raise ValueError(f"{value!r} has {len(value)} elements; {hint} has {len(inner)}.")
        return tuple(_typed(i, v) for i, v in zip(inner, value, strict=True))
    if hint is Path and isinstance(value, str):
        return Path(value)
    return value


def _came_from(arm: Any, value: Any) -> bool:
    """Return whether plain ``value`` has to be turned back into ``arm`` of a union."""
    if isinstance(value, dict):
        return dataclasses.is_dataclass(arm)
    if isinstance(value, list):
        return (typing.get_origin(arm) or arm) is tuple
    return isinstance(value, str) and arm is Path
