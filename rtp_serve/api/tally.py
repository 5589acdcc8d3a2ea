"""What the answers to a request tell together: the numbers of `usage`, and who gave them."""

from collections.abc import Sequence

from rtp_serve.api.generation import Piece
from rtp_serve.api.responses import Usage


class Tally:
    """Counts tokens. A prompt counts once, however many answers it has."""

    def __init__(self, prompts: Sequence[Sequence[int]]) -> None:
        self._num_prompt_tokens = sum(map(len, prompts))
        self._num_cached_tokens = [0] * len(prompts)
        self._num_generated = 0
        self._fingerprints: set[str] = set()

    def add(self, piece: Piece, prompt_index: int = 0) -> None:
        """Count what a piece brought for one of the prompts.

        The first answer says what was cached: the others find the prompt that it left there.
        """
        if piece.index == 0:
            self._num_cached_tokens[prompt_index] = piece.num_cached_tokens
        self._num_generated += len(piece.token_ids)
        if piece.fingerprint:
            self._fingerprints.add(piece.fingerprint)

    @property
    def fingerprint(self) -> str | None:
        """Of the model version that gives the answers; None before the first one's first token, and
        where prompts of one request run on several: a reload came between them."""
        return next(iter(self._fingerprints)) if len(self._fingerprints) == 1 else None

    def usage(self) -> Usage:
        return {
            "prompt_tokens": self._num_prompt_tokens,
            "completion_tokens": self._num_generated,
            "total_tokens": self._num_prompt_tokens + self._num_generated,
            "prompt_tokens_details": {"cached_tokens": sum(self._num_cached_tokens)},
        }
