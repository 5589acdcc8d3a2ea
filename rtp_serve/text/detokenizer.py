"""Token ids of one sequence → text, as they come.

A token may end inside a character, so the text of a prefix of the ids is not a prefix of the text.
What is pushed out here never changes: all pieces together equal `decode` of all ids. Each token is
looked at a bounded number of times.
"""

import codecs
from collections.abc import Sequence
from typing import Protocol

from rtp_serve.text.tokenizer import Tokenizer


class IncrementalDetokenizer(Protocol):
    """One sequence's text so far."""

    def push(self, token_ids: Sequence[int]) -> str:
        """The text that is certain now and was not before."""
        ...

    def finish(self) -> str:
        """The rest: what was waiting for more tokens."""
        ...


def make_detokenizer(
    tokenizer: Tokenizer, skip_special_tokens: bool = True
) -> IncrementalDetokenizer:
    """A detokenizer for a new sequence."""
    kind = ByteLevelDetokenizer if tokenizer.is_byte_level else WindowDetokenizer
    return kind(tokenizer, tokenizer.special_ids if skip_special_tokens else frozenset())


class ByteLevelDetokenizer:
    """For vocabularies whose text is the concatenation of the tokens' bytes."""

    def __init__(self, tokenizer: Tokenizer, skipped_ids: frozenset[int]) -> None:
        self._token_bytes = tokenizer.token_bytes
        self._skipped_ids = skipped_ids
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def push(self, token_ids: Sequence[int]) -> str:
        skipped = self._skipped_ids
        pieces = [self._token_bytes(token_id) for token_id in token_ids if token_id not in skipped]
        return self._decoder.decode(b"".join(pieces))

    def finish(self) -> str:
        return self._decoder.decode(b"", final=True)


class WindowDetokenizer:
    """For every other vocabulary: the text of new tokens is what they add after the last token.

    The decoder drops a leading space of a text and reads a run of byte tokens as a whole, so

        last token out | byte tokens … other token
        `_context`     | `_pending`, decoded when the run has ended
    """

    def __init__(self, tokenizer: Tokenizer, skipped_ids: frozenset[int]) -> None:
        self._tokenizer = tokenizer
        self._skipped_ids = skipped_ids
        self._context: list[int] = []
        self._pending: list[int] = []

    def push(self, token_ids: Sequence[int]) -> str:
        known = self._tokenizer.token_bytes
        self._pending += [
            token_id
            for token_id in token_ids
            if token_id not in self._skipped_ids and known(token_id)
        ]
        if not self._pending or self._tokenizer.is_byte_token(self._pending[-1]):
            return ""
        return self.finish()

    def finish(self) -> str:
        if not self._pending:
            return ""
        before = self._decode(self._context)
        text = self._decode(self._context + self._pending)[len(before) :]
        self._context = self._pending[-1:]
        self._pending = []
        return text

    def _decode(self, token_ids: list[int]) -> str:
        return self._tokenizer.decode(token_ids, skip_special_tokens=False)
