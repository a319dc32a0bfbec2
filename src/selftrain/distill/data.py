"""The text of a DistillSpec run: tokenizer, training rows, held-out prompts."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import PreTrainedTokenizerBase

from selftrain._core.io import atomic_folder, read_json, recover_folder, write_json
from selftrain._core.rng import torch_generator
from selftrain.decoding.prompts import encode_prompt
from selftrain.errors import RunConflictError
from selftrain.tasks.corpus import CorpusSplit, Document, load_corpus, split_corpus
from selftrain.tasks.tokens import blocks, encode_documents, train_tokenizer, windows
from selftrain.training.pretrained import load_tokenizer

if TYPE_CHECKING:
    from selftrain.distill.pipeline import DistillSpecConfig

_MAX_VALIDATION_BLOCKS = 64
_FINGERPRINT = "corpus.json"


@dataclass(frozen=True, slots=True)
class PromptData:
    """Everything that the stages read; the test part is only ever prompted with."""

    tokenizer: PreTrainedTokenizerBase
    train_blocks: list[dict[str, list[int]]]
    """Packed blocks for next-token training."""
    validation_blocks: list[dict[str, list[int]]]
    """The same of held-out documents."""
    train_rows: list[dict[str, list[int]]]
    """Prompts and their continuations, for distillation."""
    test_prompts: list[list[int]]
    """Prompts from test documents."""
    num_documents: int
    num_characters: int
    sha256: str
    """Of the whole text."""


def prepare_data(
    config: "DistillSpecConfig", folder: Path, tokenizer: PreTrainedTokenizerBase | None
) -> PromptData:
    """Load and split the corpus, train the tokenizer unless one is given, and cut the rows.

    Nothing is written: see :func:`keep_data`.

    Args:
        config: The run.
        folder: Its folder, with the tokenizer and the fingerprint of the text if it was begun.
        tokenizer: The target's own; None trains one on the training documents.

    Raises:
        RunConflictError: If the text is not the one that the run began with.
        ValueError: If there is too little text.
    """
    documents = load_corpus(config.dataset, text_column=config.text_column)
    path = folder / _FINGERPRINT
    if path.exists() and read_json(path) != _fingerprint(documents):
        raise RunConflictError(
            f"the text of {config.dataset!r} is not the one that the run in {folder} began with. "
            "Restore it, or choose another folder."
        )
    split = split_corpus(documents)
    if tokenizer is None:
        recover_folder(folder / "tokenizer")
        if (folder / "tokenizer").exists():
            tokenizer = load_tokenizer(str(folder / "tokenizer"))
        else:
            texts = (document.text for document in split.train)
            tokenizer = train_tokenizer(texts, vocab_size=config.vocab_size)
    return cut_data(config, split, tokenizer, documents)


def keep_data(data: PromptData, folder: Path) -> None:
    """Write the tokenizer and the text's fingerprint into a run's folder, once."""
    if not (folder / _FINGERPRINT).exists():
        with atomic_folder(folder / "tokenizer") as part:
            data.tokenizer.save_pretrained(part)
        write_json(
            folder / _FINGERPRINT, {"num_documents": data.num_documents, "sha256": data.sha256}
        )


def cut_data(
    config: "DistillSpecConfig",
    split: CorpusSplit,
    tokenizer: PreTrainedTokenizerBase,
    documents: Sequence[Document],
) -> PromptData:
    """Encode a split corpus and cut it into the rows of every stage."""
    train, validation, test = (
        encode_documents(tokenizer, part) for part in (split.train, split.validation, split.test)
    )
    length = config.distillation.sampling.max_new_tokens
    rows = windows(train, prompt_tokens=config.prompt_tokens, completion_tokens=length)
    # Full rows only, so that every step scores the same number of tokens.
    rows = [row for row in rows if len(row["completion_ids"]) == length]
    prompts = _spread(
        windows(test, prompt_tokens=config.prompt_tokens, completion_tokens=length),
        config.num_untimed_prompts,
        config.seed,
    )
    for name, found, wanted in (
        ("training windows", len(rows), 1),
        ("test prompts", len(prompts), config.num_untimed_prompts),
    ):
        if found < wanted:
            raise ValueError(
                f"dataset {config.dataset!r} gives {found} {name} of {config.prompt_tokens} + "
                f"{length} tokens, {wanted} are needed; give more text, or lower prompt_tokens, "
                "distillation.sampling.max_new_tokens or num_untimed_prompts."
            )
    if config.prompts == "chat":
        rows = [{**row, "prompt_ids": _as_chat(tokenizer, row["prompt_ids"])} for row in rows]
        prompts = [{**row, "prompt_ids": _as_chat(tokenizer, row["prompt_ids"])} for row in prompts]
    return PromptData(
        tokenizer=tokenizer,
        train_blocks=blocks(train, length=config.block_tokens),
        validation_blocks=blocks(validation, length=config.block_tokens)[:_MAX_VALIDATION_BLOCKS],
        train_rows=rows,
        test_prompts=[row["prompt_ids"] for row in prompts],
        num_documents=len(documents),
        num_characters=sum(len(d.text) for d in documents),
        sha256=_fingerprint(documents)["sha256"],
    )


def _spread(rows: list[Any], num: int, seed: int) -> list[Any]:
    """Choose rows from all over the text, in an order that the seed gives."""
    import torch

    order = torch.randperm(len(rows), generator=torch_generator(seed, "prompts")).tolist()
    return [rows[i] for i in order[:num]]


def _as_chat(tokenizer: PreTrainedTokenizerBase, prompt_ids: list[int]) -> list[int]:
    if tokenizer.chat_template is None:
        raise ValueError(
            'prompts="chat" needs a tokenizer with a chat template; this one has none. '
            'Use prompts="raw", or a target that was tuned for chat.'
        )
    text = str(tokenizer.decode(prompt_ids, skip_special_tokens=True))
    return encode_prompt(tokenizer, [{"role": "user", "content": text}])


def _fingerprint(documents: Sequence[Document]) -> dict[str, Any]:
    digest = hashlib.sha256()
    for document in documents:
        digest.update(f"{document.id}\0{document.text}\0".encode())
    return {"num_documents": len(documents), "sha256": digest.hexdigest()}
