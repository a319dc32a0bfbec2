"""Optional dependencies."""

import pytest

from selftrain._core.optional import require
from selftrain.errors import MissingExtraError, SelftrainError


def test_an_installed_module_is_returned():
    assert require("json.decoder", extra="math").__name__ == "json.decoder"


def test_a_missing_package_names_the_command_that_installs_it():
    with pytest.raises(MissingExtraError, match=r"pip install 'selftrain\[atari\]'") as caught:
        require("no_such_package.part", extra="atari")
    assert "'no_such_package'" in str(caught.value)
    assert isinstance(caught.value, (SelftrainError, ImportError))


def test_a_broken_dependency_is_not_called_missing(tmp_path, monkeypatch):
    (tmp_path / "half_installed.py").write_text("import no_such_package")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="no_such_package") as caught:
        require("half_installed", extra="atari")
    assert not isinstance(caught.value, MissingExtraError)
