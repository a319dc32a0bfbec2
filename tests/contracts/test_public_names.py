"""Every public name exists, is documented and typed, keeps its signature, and has a page."""

import ast
import dataclasses
import inspect
import json
import re
from pathlib import Path

import pytest
import update_signatures
from public_names import PublicName, documented_as, everything, pages, top_level

import selftrain
from selftrain._core.config import from_dict, to_dict

ROOT = Path(__file__).parents[2]
NAMES = everything()
CONFIGS = [
    name
    for name in NAMES
    if dataclasses.is_dataclass(name.value) and name.qualified.endswith(("Config", "Params"))
]


def ids(name: PublicName) -> str:
    return name.qualified


def members(name: PublicName) -> list[tuple[str, object]]:
    """Return the name itself and, for a class of ours, its public methods and properties."""
    found: list[tuple[str, object]] = [(name.qualified, name.value)]
    if isinstance(name.value, type):
        for key, value in vars(name.value).items():
            if isinstance(value, (staticmethod, classmethod)):
                value = value.__func__
            if not key.startswith("_") and (inspect.isfunction(value) or _is_property(value)):
                found.append((f"{name.qualified}.{key}", value))
    return found


def _is_property(value: object) -> bool:
    return isinstance(value, property)


def test_the_stub_lists_what_it_imports():
    tree = ast.parse((ROOT / "src/selftrain/__init__.pyi").read_text(encoding="utf-8"))
    imported = [a.name for n in tree.body if isinstance(n, ast.ImportFrom) for a in n.names]
    listed = [
        ast.literal_eval(n.value)
        for n in tree.body
        if isinstance(n, ast.Assign) and getattr(n.targets[0], "id", "") == "__all__"
    ]
    assert listed == [sorted(imported)]
    assert sorted(selftrain.__all__) == sorted(imported)


@pytest.mark.parametrize("name", selftrain.__all__)
def test_a_top_level_name_loads(name):
    assert getattr(selftrain, name) is not None


@pytest.mark.parametrize("name", NAMES, ids=ids)
def test_a_public_name_has_a_docstring(name):
    if not name.is_code:
        return  # a constant says what it is in the page of its module
    missing = [
        qualified
        for qualified, value in members(name)
        # A dataclass without a docstring gets its signature as one.
        if not (doc := inspect.getdoc(value)) or doc.startswith(f"{name.value.__name__}(")
    ]
    assert missing == []


@pytest.mark.parametrize("name", NAMES, ids=ids)
def test_the_first_line_of_a_docstring_is_a_sentence(name):
    if not name.is_code:
        return
    for qualified, value in members(name):
        first = (inspect.getdoc(value) or "").split("\n\n")[0]
        assert re.search(r"[.:?]$", first), f"{qualified}: {first!r}"


@pytest.mark.parametrize("name", NAMES, ids=ids)
def test_a_public_name_is_typed(name):
    untyped = []
    for qualified, value in members(name):
        if isinstance(value, property):
            value = value.fget
        if isinstance(value, type):
            if getattr(value, "_is_protocol", False):
                continue  # has no constructor; typing gives it one without annotations
            value = value.__dict__.get("__init__")
        if not inspect.isfunction(value) or getattr(value, "__no_type_check__", False):
            continue
        signature = inspect.signature(value)
        if signature.return_annotation is inspect.Signature.empty and value.__name__ != "__init__":
            untyped.append(f"{qualified}: result")
        untyped += [
            f"{qualified}: {p.name}"
            for p in list(signature.parameters.values())
            if p.annotation is p.empty and p.name not in ("self", "cls")
        ]
    assert untyped == []


def test_signatures_are_those_of_the_snapshot():
    recorded = json.loads(update_signatures.SNAPSHOT.read_text(encoding="utf-8"))
    now = update_signatures.signatures()
    changes = [f"- {k}{recorded[k]}" for k in recorded if now.get(k) != recorded[k]]
    changes += [f"+ {k}{now[k]}" for k in now if recorded.get(k) != now[k]]
    assert not changes, (
        "public signatures changed:\n"
        + "\n".join(sorted(changes, key=lambda c: c[2:]))
        + "\nIf that is meant: python tests/contracts/update_signatures.py, and say so in "
        "CHANGELOG.md (removing or renaming needs a release of DeprecationWarning first)."
    )


@pytest.mark.parametrize("name", CONFIGS, ids=ids)
def test_a_config_survives_json_and_refuses_unknown_keys(name):
    config = name.value()
    data = json.loads(json.dumps(to_dict(config), allow_nan=False))
    assert from_dict(name.value, data) == config
    with pytest.raises(ValueError, match="has no field no_such_field"):
        from_dict(name.value, {**data, "no_such_field": 1})


@pytest.mark.parametrize("name", CONFIGS, ids=ids)
def test_a_config_is_frozen_and_every_field_has_a_line_of_help(name):
    cls = name.value
    assert cls.__dataclass_params__.frozen
    body = ast.parse(inspect.cleandoc(inspect.getsource(cls))).body[0].body
    bare = [
        node.target.id
        for node, after in zip(body, [*body[1:], ast.Pass()], strict=True)
        if isinstance(node, ast.AnnAssign)
        and not (isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant))
    ]
    assert bare == []


def test_every_module_with_public_names_has_a_reference_page():
    import reference_pages

    written = reference_pages.render()
    assert set(written) == {"selftrain", *pages()}
    for module, names in pages().items():
        for name in names:
            assert f":: {name.qualified}\n" in written[module]


def test_every_top_level_name_has_an_entry():
    import reference_pages

    page = reference_pages.render()["selftrain"]
    missing = [n.qualified for n in top_level() if documented_as(n) not in page]
    assert missing == []


@pytest.mark.parametrize("name", top_level(), ids=ids)
def test_every_top_level_name_is_spoken_of_in_a_guide(name):
    short = name.qualified.split(".")[-1]
    guides = [*(ROOT / "docs/guides").glob("*.md"), *(ROOT / "docs/papers").glob("*.md")]
    texts = [path.read_text(encoding="utf-8") for path in guides]
    assert any(re.search(rf"\b{short}\b", text) for text in texts), (
        f"{short}: no page in docs/guides or docs/papers speaks of it"
    )
