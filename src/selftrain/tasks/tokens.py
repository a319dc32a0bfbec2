"""From documents to token ids: a byte-level BPE tokenizer, windows and packed blocks."""

from collections.abc import Iterable, Sequence
from itertools import chain
from typing import TYPE_CHECKING

import numpy as np

from selftrain._core.checks import check_int, check_not_empty
from selftrain.tasks.corpus import Document

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

_END, _PAD = "<|endoftext|>", "<|pad|>"
_MIN_VOCAB = 256 + 2  # every byte, and the two special tokens


def train_tokenizer(texts: Iterable[str], *, vocab_size: int = 1024) -> "PreTrainedTokenizerFast":
    """Train a byte-level BPE tokenizer.

    Every text is encoded without loss: ``decode(encode(text)) == text``, whatever its characters.
    Digits are tokens of their own. ``<|endoftext|>`` is the beginning- and end-of-sequence token,
    ``<|pad|>`` pads. The same texts give the same vocabulary. It saves with ``save_pretrained``
    and loads with ``AutoTokenizer.from_pretrained``.

    Args:
        texts: What to learn the merges from.
        vocab_size: Number of tokens, the 256 bytes and two special ones included; at least 258.
            Short texts may give fewer.

    Raises:
        ValueError: If ``vocab_size`` is too small.

    Example:
        >>> tokenizer = train_tokenizer(["def f(x): return x"] * 8, vocab_size=270)
        >>> tokenizer.decode(tokenizer.encode("f(x) — π"))
        'f(x) — π'
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    check_int("vocab_size", vocab_size, low=_MIN_VOCAB)
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=2,
        special_tokens=[_END, _PAD],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token=_END,
        eos_token=_END,
        pad_token=_PAD,
        clean_up_tokenization_spaces=False,
    )


def encode_documents(
    tokenizer: "PreTrainedTokenizerBase", documents: Sequence[Document]
) -> list[list[int]]:
    """Return the token ids of every document, with the end-of-sequence token after each.

    No other special token is added, and one that is spelled out in a text is encoded as text, so
    that a document ends only where it ends.

    Args:
        tokenizer: Any tokenizer with an end-of-sequence token.
        documents: The documents to encode.

    Raises:
        ValueError: If ``documents`` is empty or the tokenizer has no end-of-sequence token.
    """
    check_not_empty("documents", documents)
    if tokenizer.eos_token_id is None:
        raise ValueError("tokenizer has no eos_token; set one, so that documents can end.")
    encoded = tokenizer(
        [document.text for document in documents],
        add_special_tokens=False,
        split_special_tokens=True,
        return_attention_mask=False,
        verbose=False,
    )
    return [[*ids, tokenizer.eos_token_id] for ids in encoded["input_ids"]]


def windows(
    encoded: Sequence[Sequence[int]], *, prompt_tokens: int, completion_tokens: int
) -> list[dict[str, list[int]]]:
    """Cut documents into windows of a prompt and its continuation, for distillation.

    Windows do not overlap and lie inside one document. Prompts are full; the last completion of a
    document may be shorter, and ends with the document. A rest of ``prompt_tokens`` tokens or fewer
    is left out.

    Args:
        encoded: Token ids of each document, from :func:`encode_documents`.
        prompt_tokens: Tokens in each prompt.
        completion_tokens: Most tokens in each completion.

    Returns:
        Rows ``{"prompt_ids": [...], "completion_ids": [...]}`` in the order of the documents.

    Raises:
        ValueError: If a size is not positive, or no document is longer than a prompt.
    """
    check_int("prompt_tokens", prompt_tokens, low=1)
    check_int("completion_tokens", completion_tokens, low=1)
    size = prompt_tokens + completion_tokens
    rows = [
        {
            "prompt_ids": list(ids[start : start + prompt_tokens]),
            "completion_ids": list(ids[start + prompt_tokens : start + size]),
        }
        for ids in encoded
        for start in range(0, len(ids) - prompt_tokens, size)
    ]
    if not rows:
        longest = max(map(len, encoded), default=0)
        raise ValueError(
            f"no document has more than prompt_tokens={prompt_tokens} tokens (the longest of "
            f"{len(encoded)} has {longest}); give longer documents or a smaller prompt_tokens."
        )
    return rows


def blocks(encoded: Sequence[Sequence[int]], *, length: int) -> list[dict[str, list[int]]]:
    """Pack documents end to end into blocks of equal length, for next-token training.

    Blocks cross the borders of documents, which their end-of-sequence tokens mark; the incomplete
    last block is left out.

    Args:
        encoded: Token ids of each document, from :func:`encode_documents`.
        length: Tokens in each block.

    Returns:
        Rows ``{"input_ids": [...]}``.

    Raises:
        ValueError: If ``length`` is not positive, or there are fewer tokens than one block.
    """
    check_int("length", length, low=1)
    total = sum(map(len, encoded))
    if total < length:
        raise ValueError(
            f"the documents have {total} tokens together, fewer than one block of length={length}; "
            "give more text or shorter blocks."
        )
    num_blocks = total // length
    flat = np.fromiter(chain.from_iterable(encoded), dtype=np.int64, count=num_blocks * length)
    return [{"input_ids": ids} for ids in flat.reshape(num_blocks, length).tolist()]
