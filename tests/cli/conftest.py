"""A tiny model in a folder, and word problems in files, for the commands of the loops."""

import json
from pathlib import Path

import pytest

from selftrain.tasks import character_tokenizer, small_llama


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory) -> Path:
    """A model of one layer that knows nothing, as ``from_pretrained`` reads it."""
    folder = tmp_path_factory.mktemp("tiny") / "model"
    tokenizer = character_tokenizer()
    small_llama(tokenizer, num_layers=1, width=32).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def word_problems(tmp_path_factory) -> Path:
    """A folder in GSM8K's format: the answer is 0 or 1, and nobody could know which."""
    folder = tmp_path_factory.mktemp("problems")
    for split, first, count in (("train", 0, 16), ("test", 16, 4)):
        rows = [
            {"question": f"{chr(97 + i)}?", "answer": f"{i % 2}\n#### {i % 2}"}
            for i in range(first, first + count)
        ]
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder
