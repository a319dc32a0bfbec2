"""Files are whole or absent, whatever fails."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from selftrain._core import io


def full_disk(*args, **kwargs):
    raise OSError(errno.ENOSPC, "No space left on device")


def hidden(folder: Path) -> list[str]:
    return [p.name for p in folder.iterdir() if p.name.startswith(".")]


def test_a_write_that_fails_leaves_the_old_file_and_says_so(tmp_path, monkeypatch):
    path = tmp_path / "state.json"
    io.write_json(path, {"step": 1})
    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(OSError, match=r"could not write .*state\.json") as caught:
        io.write_json(path, {"step": 2})
    assert caught.value.errno == errno.ENOSPC
    for part in ("No space left", "MB free", "what was there before is unchanged", "make room"):
        assert part in str(caught.value)
    assert io.read_json(path) == {"step": 1}
    assert hidden(tmp_path) == []


def test_text_that_cannot_be_encoded_leaves_nothing_behind(tmp_path):
    with pytest.raises(UnicodeEncodeError):
        io.write_text(tmp_path / "a.txt", "\ud800")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_in_the_way_is_told_as_such(tmp_path):
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(OSError, match="could not write"):
        io.write_text(tmp_path / "file" / "a.txt", "x")


def test_a_spoilt_json_file_is_named(tmp_path):
    (tmp_path / "a.json").write_text("{")
    with pytest.raises(ValueError, match=r"a\.json is not JSON"):
        io.read_json(tmp_path / "a.json")


def test_tensors_come_back_exactly(tmp_path):
    tensors = {"a": torch.randn(3, 4).t(), "b": torch.arange(3), "c": torch.tensor(0.5)}
    io.save_tensors(tmp_path / "new" / "state.safetensors", tensors)
    back = io.load_tensors(tmp_path / "new" / "state.safetensors")
    assert back.keys() == tensors.keys()
    assert all(torch.equal(back[k], tensors[k]) for k in tensors)


def test_tensors_that_cannot_be_written_leave_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "state.safetensors"
    io.save_tensors(path, {"a": torch.zeros(2)})
    monkeypatch.setattr(os, "replace", full_disk)
    with pytest.raises(OSError, match="could not write"):
        io.save_tensors(path, {"a": torch.ones(2)})
    assert torch.equal(io.load_tensors(path)["a"], torch.zeros(2))
    assert hidden(tmp_path) == []


def test_a_missing_jsonl_file_has_no_rows(tmp_path):
    assert io.read_jsonl(tmp_path / "none.jsonl") == []


def test_a_torn_last_row_is_dropped(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"a": 1}\n{"a": 2}\n{"a"')
    assert io.read_jsonl(path) == [{"a": 1}, {"a": 2}]


def test_a_whole_last_row_without_newline_is_kept(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"a": 1}\n{"a": 2}')
    assert io.read_jsonl(path) == [{"a": 1}, {"a": 2}]


@pytest.mark.parametrize("bad", ['{"a"', "[1]"])
def test_a_bad_row_elsewhere_is_an_error_with_its_line(tmp_path, bad):
    path = tmp_path / "a.jsonl"
    path.write_text(f'{{"a": 1}}\n{bad}\n{{"a": 2}}\n')
    with pytest.raises(ValueError, match=r"a\.jsonl:2"):
        io.read_jsonl(path)


def test_jsonl_rows_come_back(tmp_path):
    rows = [{"a": 1, "text": "ü\n"}, {"a": 2.5, "text": ""}]
    io.write_jsonl(tmp_path / "a.jsonl", rows)
    io.append_jsonl(tmp_path / "a.jsonl", {"a": 3})
    assert io.read_jsonl(tmp_path / "a.jsonl") == [*rows, {"a": 3}]


def test_a_row_that_cannot_be_appended_is_taken_back(tmp_path):
    script = (
        "import resource, signal, sys\n"
        "from selftrain._core.io import append_jsonl\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "append_jsonl(sys.argv[1], {'a': 1})\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (50, 50))\n"
        "append_jsonl(sys.argv[1], {'a': 'x' * 100})\n"
    )
    path = tmp_path / "a.jsonl"
    done = subprocess.run(
        [sys.executable, "-c", script, str(path)], capture_output=True, text=True, check=False
    )
    assert "could not write" in done.stderr
    assert path.read_text() == '{"a": 1}\n'


def test_a_folder_appears_only_when_it_is_whole(tmp_path):
    target = tmp_path / "model"
    with io.atomic_folder(target) as part:
        (part / "weights").write_text("new")
        assert not target.exists()
    assert (target / "weights").read_text() == "new"
    assert hidden(tmp_path) == []


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, OSError])
def test_an_error_while_filling_a_folder_keeps_the_old_one(tmp_path, error):
    target = tmp_path / "model"
    with io.atomic_folder(target) as part:
        (part / "weights").write_text("old")
    with pytest.raises(error), io.atomic_folder(target) as part:  # noqa: PT012
        (part / "weights").write_text("new")
        raise error("half-way")
    assert (target / "weights").read_text() == "old"
    assert hidden(tmp_path) == []


def test_a_failing_last_rename_brings_the_old_folder_back(tmp_path, monkeypatch):
    target = tmp_path / "model"
    with io.atomic_folder(target) as part:
        (part / "weights").write_text("old")
    rename = Path.rename

    def fail_for_part(self, other):
        return full_disk() if self.name.endswith(".part") else rename(self, other)

    monkeypatch.setattr(Path, "rename", fail_for_part)
    with pytest.raises(OSError, match="could not write"), io.atomic_folder(target) as part:
        (part / "weights").write_text("new")
    assert (target / "weights").read_text() == "old"
    assert hidden(tmp_path) == []


def test_a_crash_between_the_renames_is_undone_before_reading(tmp_path):
    target = tmp_path / "model"
    script = (
        "import os, sys\n"
        "from pathlib import Path\n"
        "from selftrain._core.io import atomic_folder\n"
        "target = Path(sys.argv[1])\n"
        "with atomic_folder(target) as part:\n"
        "    (part / 'weights').write_text('old')\n"
        "rename = Path.rename\n"
        "Path.rename = lambda self, other: (\n"
        "    os._exit(9) if self.name.endswith('.part') else rename(self, other))\n"
        "with atomic_folder(target) as part:\n"
        "    (part / 'weights').write_text('new')\n"
    )
    done = subprocess.run([sys.executable, "-c", script, str(target)], check=False)
    assert done.returncode == 9
    assert not target.exists()
    io.recover_folder(target)
    assert (target / "weights").read_text() == "old"


def test_recovery_prefers_the_new_folder_when_it_is_whole(tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / ".model.old").mkdir()
    io.recover_folder(tmp_path / "model")
    assert (tmp_path / "model").exists()
    assert hidden(tmp_path) == []


def test_a_manifest_is_plain_data_with_seed_and_versions(tmp_path):
    data = io.manifest(seed=7)
    io.write_json(tmp_path / "manifest.json", data)
    back = io.read_json(tmp_path / "manifest.json")
    assert back == data
    assert back["seed"] == 7
    assert {"selftrain", "torch", "transformers"} <= back["versions"].keys()
