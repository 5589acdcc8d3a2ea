"""What a single token contributes to the text, in bytes.

Knows the two ways vocabularies spell bytes: byte-level letters (GPT-2's alphabet, where every byte
is a printable letter) and SentencePiece's (`▁` for a space, `<0x0A>` for a byte that has no token).
"""

import json
import re

import tokenizers

_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")
_SPACE = "\u2581"


def is_byte_level(backend: tokenizers.Tokenizer) -> bool:
    """Whether the text of tokens is exactly the concatenation of their bytes."""
    decoder = backend.decoder
    return decoder is not None and json.loads(decoder.__getstate__())["type"] == "ByteLevel"


def byte_level_bytes(token: str) -> bytes:
    """The bytes of a byte-level token; a token with a letter outside the alphabet stands as is."""
    found = [_BYTE_OF_LETTER.get(letter) for letter in token]
    known = [byte for byte in found if byte is not None]
    return bytes(known) if len(known) == len(found) else token.encode()


def sentencepiece_bytes(token: str) -> bytes:
    """The bytes of a SentencePiece token, its leading space included."""
    value = byte_token_value(token)
    return token.replace(_SPACE, " ").encode() if value is None else bytes([value])


def byte_token_value(token: str) -> int | None:
    """The byte of a `<0x0A>` token, None for any other."""
    match = _BYTE_TOKEN.fullmatch(token)
    return int(match[1], 16) if match else None


def _byte_alphabet() -> dict[str, int]:
    """Letter → byte: printable Latin-1 stands for itself, the other bytes follow from U+0100."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = [byte for byte in range(0x100) if byte not in printable]
    alphabet = {chr(byte): byte for byte in printable}
    return alphabet | {chr(0x100 + index): byte for index, byte in enumerate(others)}


_BYTE_OF_LETTER = _byte_alphabet()
