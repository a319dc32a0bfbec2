from dataclasses import dataclass

import pytest

from selftrain._core.io import read_json
from selftrain._core.run import open_run
from selftrain.errors import RunConflictError


@dataclass(frozen=True)
class Config:
    size: int = 1


def test_a_new_folder_gets_configuration_and_manifest(tmp_path):
    open_run(tmp_path / "run", Config(), seed=3)
    assert read_json(tmp_path / "run" / "config.json") == {"size": 1}
    assert read_json(tmp_path / "run" / "manifest.json")["seed"] == 3


def test_the_same_configuration_continues_and_another_is_refused(tmp_path):
    open_run(tmp_path, Config(), seed=3)
    open_run(tmp_path, Config(), seed=3)
    with pytest.raises(RunConflictError, match="size: 1 -> 2"):
        open_run(tmp_path, Config(size=2), seed=3)
    assert read_json(tmp_path / "config.json") == {"size": 1}
