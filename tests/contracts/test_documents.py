"""What the README, the docs, the examples and CI say of each other and of the package."""

import ast
import importlib
import re
from pathlib import Path

import pytest
from code_blocks import Block, blocks, run_document

from selftrain.cli import COMMANDS

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
CI = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
USE = "pip install -c constraints.txt -e . && selftrain distillspec"
TEST = "pip install -c constraints.txt -e '.[dev]' && pytest"
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
DOCUMENTS = [path for path in DOCUMENTS if "_build" not in path.parts and "api" not in path.parts]
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
BLOCKS = [block for path in DOCUMENTS for block in blocks(path)]


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def label(block: Block) -> str:
    return f"{name(block.path)}:{block.line}"


def test_the_readme_holds_exactly_the_two_commands():
    found = [line for line in README.splitlines() if line.startswith("pip install ")]
    assert found == [USE, TEST]


def test_ci_runs_the_test_command_of_the_readme():
    assert f'TEST_COMMAND="{TEST}"' in CI


def test_the_installation_page_gives_the_same_commands():
    page = (ROOT / "docs" / "install.md").read_text(encoding="utf-8")
    assert USE in page
    assert TEST in page


@pytest.mark.parametrize("command", sorted(COMMANDS))
def test_a_registered_command_has_a_module_and_a_page(command):
    assert callable(importlib.import_module(f"selftrain.cli.{command.replace('-', '_')}").main)
    assert any(f"selftrain {command}" in path.read_text() for path in DOCUMENTS[1:])


@pytest.mark.parametrize("block", BLOCKS, ids=label)
def test_a_code_block_is_python(block):
    assert ast.parse(block.code)


@pytest.mark.parametrize("block", BLOCKS, ids=label)
def test_a_code_block_imports_names_that_exist(block):
    missing = []
    for node in ast.walk(ast.parse(block.code)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("selftrain"):
            for alias in node.names:
                if not hasattr(importlib.import_module(node.module or ""), alias.name):
                    missing.append(f"{node.module}.{alias.name}")
    assert missing == []


def test_the_blocks_of_a_document_run_in_one_namespace(tmp_path):
    path = tmp_path / "page.md"
    path.write_text(
        "```python\nx = []\n```\n```bash\nls\n```\n<!-- not run: no network -->\n"
        "```python\n1 / 0\n```\n```python\nx.append(1)\nassert x == [1]\n```\n"
    )
    assert [(b.line, b.run) for b in blocks(path)] == [(2, True), (9, False), (12, True)]
    assert run_document(path) == 2


@pytest.mark.parametrize("path", DOCUMENTS, ids=name)
def test_links_between_files_lead_somewhere(path):
    text = re.sub(r"```.*?```", "", path.read_text(encoding="utf-8"), flags=re.DOTALL)
    targets = re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", text)
    local = [(path.parent / t).resolve() for t in targets if "://" not in t]
    broken = [str(t.relative_to(ROOT)) for t in local if not t.exists()]
    assert broken == []


@pytest.mark.parametrize("path", EXAMPLES, ids=name)
def test_an_example_is_short_explains_itself_and_is_listed(path):
    text = path.read_text(encoding="utf-8")
    assert text.count("\n") < 120
    assert ast.get_docstring(ast.parse(text)), "say what it shows and what it prints"
    assert "quick" in text, "CI runs every example with --quick"
    assert any(f"examples/{path.name}" in p.read_text(encoding="utf-8") for p in DOCUMENTS)


def test_the_citation_file_names_the_ten_papers():
    text = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert len(set(re.findall(r"arxiv\.org/abs/(\d{4}\.\d{5})", text))) == 10


def test_no_document_holds_a_path_of_somebodys_machine():
    for path in DOCUMENTS:
        assert not re.search(r"/(home|root|Users)/", path.read_text(encoding="utf-8")), name(path)
