"""Sandboxes of each level; a level that cannot be started here is skipped, with the reason."""

import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from selftrain.errors import SandboxError
from selftrain.tasks.sandbox import Sandbox


@pytest.fixture(scope="session")
def start() -> Callable[..., Sandbox]:
    """Make a started sandbox, or skip."""

    def make(level: str, **settings) -> Sandbox:
        sandbox = Sandbox(level=level, allow_code_execution=True, **settings)
        try:
            sandbox.__enter__()
        except SandboxError as error:
            pytest.skip(f"{level} cannot be started here: {error}")
        return sandbox

    return make


@pytest.fixture(scope="module", params=["L2", "L1"])
def sandbox(request, start) -> Iterator[Sandbox]:
    with start(request.param, timeout=20.0) as made:
        yield made


@pytest.fixture
def descendants() -> Callable[[], set[int]]:
    """Return the processes below this one, zombies included."""

    def below(pid: int) -> set[int]:
        found = set()
        for path in Path(f"/proc/{pid}/task").glob("*/children"):
            try:
                children = {int(word) for word in path.read_text().split()}
            except OSError:
                continue  # it has ended meanwhile
            found |= children.union(*(below(child) for child in children))
        return found

    return lambda: below(os.getpid())


@pytest.fixture(scope="module")
def scratch_folders(tmp_path_factory) -> Iterator[Callable[[], set[Path]]]:
    """Return the folders that sandboxes have made, in a place that other runs do not share."""
    before, tempfile.tempdir = tempfile.tempdir, str(tmp_path_factory.mktemp("scratch"))
    here = Path(tempfile.tempdir)
    yield lambda: set(here.iterdir())
    tempfile.tempdir = before
