"""Text ↔ token ids, as `transformers` does it for the same files, without torch.

Knows nothing of models or chats. Immutable after loading; safe to use from several threads, and
encoding releases the GIL.
"""

from collections.abc import Sequence
from pathlib import Path

from rtp_serve.errors import InvalidRequest
from rtp_serve.text.token_bytes import (
    byte_level_bytes,
    byte_token_value,
    is_byte_level,
    sentencepiece_bytes,
)
from rtp_serve.text.tokenizer_files import TokenizerFiles, load_backend, read_tokenizer_files


class Tokenizer:
    """A checkpoint's tokenizer."""

    def __init__(self, files: TokenizerFiles) -> None:
        self._backend = load_backend(files)
        self._bytes_by_id: dict[int, bytes] = {}
        self.is_byte_level = is_byte_level(self._backend)
        """Whether text is exactly the concatenation of `token_bytes`."""

        self.special_tokens = dict(files.special_tokens)
        """Role ("bos_token") → text."""

        self.special_ids = self._find_special_ids(files)
        self.bos_id = self._id_of(files.special_tokens.get("bos_token"))
        eos_id = self._id_of(files.special_tokens.get("eos_token"))
        self.eos_ids = tuple(
            dict.fromkeys((*files.end_ids, *(() if eos_id is None else (eos_id,))))
        )
        """Every token that ends a sequence, the most specific source first."""

        self.vocab_size = 1 + max(self._backend.get_vocab().values(), default=-1)
        """One more than the largest id. The model's embedding may have more rows."""

    @classmethod
    def from_directory(cls, directory: Path) -> "Tokenizer":
        """Load a checkpoint's tokenizer. Raises CheckpointError if it is missing or malformed."""
        return cls(read_tokenizer_files(directory))

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """Token ids. Raises InvalidRequest if the text has no UTF-8 form (a lone surrogate)."""
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise InvalidRequest(
                f"the text has a lone surrogate at character {error.start}"
            ) from error
        # Unlike `encode`, this releases the GIL and skips the offsets.
        batch = self._backend.encode_batch_fast([text], add_special_tokens=add_special_tokens)
        ids: list[int] = batch[0].ids
        return ids

    def encode_word(self, word: str) -> tuple[tuple[int, ...], ...]:
        """The word's spellings, at the start of a text and after a space, for barring it.

        A spelling that merely puts other tokens before another one is left out.
        """
        bare = tuple(self.encode(word, add_special_tokens=False))
        spaced = tuple(self.encode(" " + word, add_special_tokens=False))
        if not bare:
            return ()
        return (bare,) if spaced[-len(bare) :] == bare else (bare, spaced)

    def decode(self, token_ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        """Text. Ids that are no token's give none. Raises InvalidRequest for a negative id."""
        try:
            text: str = self._backend.decode(token_ids, skip_special_tokens=skip_special_tokens)
        except OverflowError as error:
            raise InvalidRequest("token ids must be from 0 to 4294967295", "tokens") from error
        return text

    def token_bytes(self, token_id: int) -> bytes:
        """What the token adds to a text, in bytes; part of a character, or empty for no token."""
        found = self._bytes_by_id.get(token_id)
        if found is None:
            token = self._backend.id_to_token(token_id)
            spell = byte_level_bytes if self.is_byte_level else sentencepiece_bytes
            found = self._bytes_by_id[token_id] = b"" if token is None else spell(token)
        return found

    def token_text(self, token_id: int) -> str:
        """`token_bytes` as text, with replacement characters where it is part of a character."""
        return self.token_bytes(token_id).decode(errors="replace")

    def is_byte_token(self, token_id: int) -> bool:
        """Whether the token is a single byte that only means something next to others."""
        token = self._backend.id_to_token(token_id)
        return token is not None and byte_token_value(token) is not None

    def _find_special_ids(self, files: TokenizerFiles) -> frozenset[int]:
        added = self._backend.get_added_tokens_decoder().items()
        special = {token_id for token_id, token in added if token.special}
        named = map(self._id_of, (*files.special_tokens.values(), *files.more_special_tokens))
        return frozenset(special.union(token_id for token_id in named if token_id is not None))

    def _id_of(self, token: str | None) -> int | None:
        token_id: int | None = None if token is None else self._backend.token_to_id(token)
        return token_id
