"""What models are trained and judged on: text corpora, and the tokens made from them."""

from selftrain.tasks.corpus import (
    CorpusSplit,
    Document,
    cut_sections,
    load_corpus,
    split_corpus,
)
from selftrain.tasks.tokens import blocks, encode_documents, train_tokenizer, windows

__all__ = [
    "CorpusSplit",
    "Document",
    "blocks",
    "cut_sections",
    "encode_documents",
    "load_corpus",
    "split_corpus",
    "train_tokenizer",
    "windows",
]
