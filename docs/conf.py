"""Sphinx settings. The reference pages are written from the public names before each build."""

import inspect
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

import reference_pages  # noqa: E402
from public_names import documented_as, top_level  # noqa: E402

import selftrain  # noqa: E402

project = "selftrain"
author = "The selftrain authors"
copyright = "The selftrain authors"
release = version = selftrain.__version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.mathjax",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
]
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = f"selftrain {release}"
html_static_path: list[str] = []

myst_enable_extensions = ["amsmath", "colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3
autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
python_use_unqualified_type_names = True

reference_pages.write(HERE / "reference" / "api")

_ALIASES = {name.qualified: documented_as(name) for name in top_level()}


def _resolve_alias(app: Any, env: Any, node: Any, content: Any) -> Any:
    """Let ``selftrain.X`` lead to the entry of the object in the package that defines it."""
    target = _ALIASES.get(node.get("reftarget", ""))
    if target is None or target == node["reftarget"]:
        return None
    domain = env.get_domain("py")
    return domain.resolve_xref(
        env, node["refdoc"], app.builder, node["reftype"], target, node, content
    )


_raw_lines: dict[str, list[str]] = {}


def _keep_lines(app: Any, what: str, name: str, value: Any, options: Any, lines: list[str]) -> None:
    if what == "data" and "\n".join(lines).strip() == (inspect.getdoc(type(value)) or ""):
        lines.clear()  # a constant of a built-in type is not described by the type's own docstring
    if what in ("attribute", "data"):
        _raw_lines[name] = list(lines)


def _restore_lines(app: Any, what: str, name: str, *rest: Any) -> None:
    # napoleon takes what stands before a colon in the line under a field for the field's type.
    if name in _raw_lines:
        rest[-1][:] = _raw_lines.pop(name)


def setup(app: Any) -> None:
    """Register what this file adds to Sphinx."""
    app.connect("autodoc-process-docstring", _keep_lines, priority=400)  # napoleon's is 500
    app.connect("autodoc-process-docstring", _restore_lines, priority=600)
    app.connect("missing-reference", _resolve_alias)
