"""What library code never does."""

import ast
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[2] / "src" / "selftrain"
FILES = sorted(SOURCE.rglob("*.py"))
ATTRIBUTES = {
    ("torch", "load"): "read tensors through selftrain._core.io (safetensors)",
    ("torch", "save"): "write tensors through selftrain._core.io (safetensors)",
    ("torch", "manual_seed"): "take a generator, or use seeded_torch",
}
MODULES = {"pickle", "cloudpickle", "dill", "joblib"}
# The process that runs programs is a place of its own; it imports nothing of the library.
RUNS_PROGRAMS = "tasks/sandbox/guest/program.py"
# The one place that may seed torch: it restores the state afterwards.
ALLOWED = {("_core/rng.py", "manual_seed")}


def offences(path: Path) -> list[str]:
    where = str(path.relative_to(SOURCE))
    in_cli = where.startswith("cli/")
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        line = getattr(node, "lineno", 0)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            name = node.func.id
            runs = name in ("eval", "exec") and where != RUNS_PROGRAMS
            if runs or (name == "print" and not in_cli):
                found.append(f"{where}:{line}: {name}()")
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            advice = ATTRIBUTES.get((node.value.id, node.attr))
            if advice and (where, node.attr) not in ALLOWED:
                found.append(f"{where}:{line}: {node.value.id}.{node.attr}: {advice}")
        if isinstance(node, ast.Import):
            found += [f"{where}:{line}: {a.name}" for a in node.names if a.name in MODULES]
        if isinstance(node, ast.ImportFrom) and node.module in MODULES:
            found.append(f"{where}:{line}: {node.module}")
        if isinstance(node, ast.keyword) and ast.unparse(node) == "trust_remote_code=True":
            found.append(f"{where}:{line}: trust_remote_code=True")
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_library_code_neither_prints_nor_evaluates_nor_unpickles(path):
    assert offences(path) == []


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_a_module_stays_below_500_lines(path):
    assert path.read_text(encoding="utf-8").count("\n") <= 500


def test_the_check_sees_an_offence(tmp_path, monkeypatch):
    monkeypatch.setattr(f"{__name__}.SOURCE", tmp_path)
    path = tmp_path / "a.py"
    path.write_text(
        "import pickle\nprint(1)\nx = eval('1')\ntorch.load('a')\nf(trust_remote_code=True)\n"
    )
    assert len(offences(path)) == 5
