"""Frozen dataclasses to JSON and back."""

import json
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from selftrain._core.config import differences, from_dict, load_json, save_json, to_dict


@dataclass(frozen=True, kw_only=True)
class Inner:
    rate: float = 0.1
    names: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Outer:
    inner: Inner = field(default_factory=Inner)
    maybe: Inner | None = None
    count: int | str = 3
    pair: tuple[str, Path] = ("a", Path("b"))
    rates: float | tuple[float, ...] = 1.0
    many: tuple[Inner, ...] = ()
    folder: Path | None = None


FULL = Outer(
    inner=Inner(rate=0.5, names=("x", "y")),
    maybe=Inner(names=("z",)),
    count="auto",
    rates=(0.1, 0.2),
    many=(Inner(rate=1.0), Inner(rate=2.0)),
    folder=Path("here"),
)


@pytest.mark.parametrize("config", [Outer(), FULL], ids=["default", "full"])
def test_a_config_survives_json(config, tmp_path):
    assert from_dict(Outer, json.loads(json.dumps(to_dict(config)))) == config
    save_json(config, tmp_path / "config.json")
    assert load_json(Outer, tmp_path / "config.json") == config


def test_an_unknown_key_is_an_error_that_lists_the_fields():
    with pytest.raises(ValueError, match="Inner has no field rte; it has names, rate"):
        from_dict(Inner, {"rte": 0.1})


def test_an_unknown_key_of_a_nested_config_is_an_error():
    with pytest.raises(ValueError, match="Inner has no field rte"):
        from_dict(Outer, {"inner": {"rte": 0.1}})


def test_a_pair_of_the_wrong_length_is_an_error():
    with pytest.raises(ValueError, match="has 3 elements"):
        from_dict(Outer, {"pair": ["a", "b", "c"]})


def test_something_that_is_no_object_is_an_error():
    with pytest.raises(TypeError, match="Inner is read from a JSON object"):
        from_dict(Inner, [1])  # pyrefly: ignore[bad-argument-type]


def test_a_spoilt_file_is_named(tmp_path):
    (tmp_path / "config.json").write_text('{"rate": 0.')
    with pytest.raises(ValueError, match=r"config\.json is not JSON"):
        load_json(Inner, tmp_path / "config.json")


def test_differences_name_nested_fields_and_absent_ones():
    old, new = to_dict(Outer()), to_dict(FULL)
    del new["folder"]
    lines = differences({"inner": old["inner"], "folder": None}, {"inner": new["inner"]})
    assert lines == [
        "folder: None -> '(absent)'",
        "inner.names: [] -> ['x', 'y']",
        "inner.rate: 0.1 -> 0.5",
    ]


def test_equal_configs_do_not_differ():
    assert differences(to_dict(FULL), json.loads(json.dumps(to_dict(FULL)))) == []
