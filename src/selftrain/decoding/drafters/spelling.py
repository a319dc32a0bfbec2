"""What tokens spell, whichever way a tokenizer writes them down, and how to spell one with others.

Byte-level vocabularies write a space as ``Ġ``, those of sentencepiece as ``▁``, and either has ways
for single bytes. As bytes the same token is the same in both.
"""

from collections.abc import Mapping

from transformers import PreTrainedTokenizerBase

Spelling = bytes | str
"""The bytes of an ordinary token; the name of a special one."""

_END = "end of sequence"


def spellings(tokenizer: PreTrainedTokenizerBase) -> dict[int, Spelling]:
    """Return what every token of ``tokenizer`` spells, those that models prefer to use first.

    Special tokens go by their own text, but for the end of sequence, which is one thing under all
    names.
    """
    vocabulary = tokenizer.get_vocab()
    special = set(tokenizer.all_special_ids)
    spaces = "▁" if "▁" in vocabulary else None
    letters = _byte_letters() if spaces is None and "Ġ" in vocabulary else {}
    spelled: dict[int, Spelling] = {}
    single: dict[int, Spelling] = {}  # sentencepiece's way out where it has no piece
    for token, index in sorted(vocabulary.items(), key=lambda item: item[1]):
        if index == tokenizer.eos_token_id:
            spelled[index] = _END
        elif index in special:
            spelled[index] = token
        elif spaces and len(token) == 6 and token.startswith("<0x") and token.endswith(">"):
            single[index] = bytes([int(token[3:5], 16)])
        elif letters and all(letter in letters for letter in token):
            spelled[index] = bytes(letters[letter] for letter in token)
        else:
            spelled[index] = (token.replace(spaces, " ") if spaces else token).encode()
    return spelled | single


def by_spelling(spelled: Mapping[int, Spelling], num_tokens: int) -> dict[Spelling, int]:
    """Return the first of the ids below ``num_tokens`` that spells each thing."""
    ids: dict[Spelling, int] = {}
    for index, spelling in spelled.items():
        if index < num_tokens:
            ids.setdefault(spelling, index)
    return ids


def spell(text: bytes, ids: Mapping[Spelling, int], *, longest: int) -> list[int]:
    """Return tokens that spell ``text``, each as long as it can be; bytes without one are left out.

    Args:
        text: What to spell.
        ids: The tokens to use.
        longest: The number of bytes of the longest of them.
    """
    tokens, start = [], 0
    while start < len(text):
        for end in range(min(len(text), start + longest), start, -1):
            token = ids.get(text[start:end])
            if token is not None:
                tokens.append(token)
                start = end
                break
        else:
            start += 1
    return tokens


def _byte_letters() -> dict[str, int]:
    """Return the letters by which byte-level vocabularies write bytes (GPT-2's table)."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    letters = {chr(byte): byte for byte in printable}
    return letters | {chr(256 + i): byte for i, byte in enumerate(others)}
