"""Imports go down only, and the lower layers stay free of the heavy libraries."""

import ast
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[2] / "src" / "selftrain"

# Lowest first. Parts of one tuple may import each other only where the second set says so.
LAYERS = [
    ("errors", "_core"),
    ("kernels",),
    ("stats", "plots", "report"),
    ("ops",),
    ("nn",),
    ("decoding", "tasks", "envs"),
    ("training",),
    ("icl", "distill", "loops", "addition", "rl", "dopant", "driving"),
    ("bench",),
    ("cli",),
]
FRIENDS = {("_core", "errors"), ("report", "plots"), ("report", "stats"), ("plots", "stats")}
RANK = {part: rank for rank, parts in enumerate(LAYERS) for part in parts}
WITHOUT_TRANSFORMERS = {"_core", "kernels", "stats", "plots", "report", "ops", "nn", "envs"}

FILES = sorted(path for path in SOURCE.rglob("*.py*") if path.suffix in (".py", ".pyi"))


def part_of(path: Path) -> str:
    return path.relative_to(SOURCE).parts[0].split(".")[0]


def imports(path: Path) -> list[tuple[int, str]]:
    """Return (line, dotted module) for every import statement, those inside functions included."""
    package = ["selftrain", *path.relative_to(SOURCE).parts[:-1]]
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found += [(node.lineno, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            if module == "selftrain":  # from selftrain import ops
                found += [(node.lineno, f"selftrain.{alias.name}") for alias in node.names]
            else:
                found.append((node.lineno, module))
    return found


def check_import(part: str, imported: str) -> str | None:
    """Return what is wrong with a module of ``part`` importing ``imported``, or None."""
    words = imported.split(".")
    if words[0] in ("transformers", "accelerate") and part in WITHOUT_TRANSFORMERS:
        return f"{part} must do without {words[0]}"
    if words[0] != "selftrain" or len(words) == 1 or words[1] in (part, "__version__"):
        return None
    other = words[1]
    if other not in RANK:
        return f"{part} must import from the module that defines it, not selftrain.{other}"
    if part == "kernels" and other not in ("_core", "errors"):
        return f"kernels import only _core, not {other}"
    if RANK[other] > RANK[part]:
        return f"{part} lies below {other}"
    if RANK[other] == RANK[part] and (part, other) not in FRIENDS:
        return f"{part} and {other} stand beside each other"
    return None


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_imports_go_down(path):
    part = part_of(path)
    if part == "__init__":
        return  # the top level offers names of every layer, loaded on first use
    assert part in RANK, f"{part} has no layer: give it one in LAYERS"
    wrong = [
        f"{path.relative_to(SOURCE)}:{line}: {problem}"
        for line, module in imports(path)
        if (problem := check_import(part, module))
    ]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize(
    ("part", "module"),
    [
        ("ops", "selftrain.nn.positions"),
        ("ops", "transformers"),
        ("ops", "selftrain.divergence"),
        ("kernels", "selftrain.ops"),
        ("distill", "selftrain.rl.dqn"),
        ("decoding", "selftrain.tasks"),
        ("stats", "selftrain.plots"),
        ("_core", "selftrain.kernels"),
        ("training", "selftrain.cli"),
    ],
)
def test_the_rule_sees_what_is_forbidden(part, module):
    assert check_import(part, module)


@pytest.mark.parametrize(
    ("part", "module"),
    [
        ("cli", "selftrain.distill.pipeline"),
        ("distill", "selftrain.decoding"),
        ("distill", "selftrain.report"),
        ("ops", "selftrain.kernels.verify"),
        ("decoding", "transformers"),
        ("_core", "selftrain.errors"),
        ("_core", "selftrain.__version__"),
    ],
)
def test_the_rule_lets_pass_what_is_allowed(part, module):
    assert check_import(part, module) is None


def test_relative_imports_are_resolved(tmp_path, monkeypatch):
    monkeypatch.setattr(f"{__name__}.SOURCE", tmp_path)
    (tmp_path / "ops").mkdir()
    path = tmp_path / "ops" / "a.py"
    path.write_text("from . import b\nfrom ..nn import c\nfrom .. import rl\n")
    assert [module for _, module in imports(path)] == [
        "selftrain.ops",
        "selftrain.nn",
        "selftrain.rl",
    ]
