"""The parts that every model card has: a header that the hub reads, how to load, tables."""

import json
from collections.abc import Mapping
from typing import Any


def card_header(
    base: str, *, tags: tuple[str, ...], has_adapters: bool, is_encoder_decoder: bool = False
) -> list[str]:
    """Return the lines of a card's header.

    Args:
        base: Hub name or folder of what the model was before; only a hub name goes in.
        tags: What the hub files the model under, beside the library's name.
        has_adapters: Whether the folder holds adapters of the base only.
        is_encoder_decoder: Whether it is an encoder-decoder.
    """
    # A folder is no model on the hub, which refuses cards that name one.
    is_named = base.count("/") == 1 and not base.startswith((".", "/", "~"))
    named = [f"base_model: {json.dumps(base)}"] if is_named else []
    if named and has_adapters:
        named.append("base_model_relation: adapter")
    return [
        "---",
        *named,
        f"library_name: {'peft' if has_adapters else 'transformers'}",
        *([] if is_encoder_decoder else ["pipeline_tag: text-generation"]),
        "tags:",
        *(f"- {tag}" for tag in (*tags, "selftrain")),
        "---",
    ]


def loading_code(base: str, *, has_adapters: bool, is_encoder_decoder: bool = False) -> list[str]:
    """Return a block of Python that loads the model of a card's folder."""
    auto = "AutoModelForSeq2SeqLM" if is_encoder_decoder else "AutoModelForCausalLM"
    code = [
        f"from transformers import {auto}, AutoTokenizer",
        "",
        'path = "..."  # this folder or repository',
    ]
    if has_adapters:
        code.insert(0, "from peft import PeftModel")
        code += [
            f"base = {auto}.from_pretrained({json.dumps(base)})",
            "model = PeftModel.from_pretrained(base, path)",
        ]
    else:
        code.append(f"model = {auto}.from_pretrained(path)")
    return ["```python", *code, "tokenizer = AutoTokenizer.from_pretrained(path)", "```"]


def value_table(cells: Mapping[str, str], name: str) -> list[str]:
    """Return a table of names and values; ``name`` heads the first column."""
    rows = [f"| `{key}` | {value.replace('|', chr(92) + '|')} |" for key, value in cells.items()]
    return [f"| {name} | value |", "|---|---|", *rows]


def settings_of(data: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Return the settings in a nested configuration by dotted name, as JSON."""
    flat: dict[str, str] = {}
    for key, value in data.items():
        if isinstance(value, Mapping):
            flat |= settings_of(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = json.dumps(value)
    return flat
