"""What the answers to a request tell together: the numbers of `usage`, and who gave them."""

from collections.abc import Sequence

from rtp_serve.api.generation import Piece
from rtp_serve.api.responses import PromptTokensDetails, Usage
from rtp_serve.engine.request import NOTHING_CACHED


class Tally:
    """Counts tokens. A prompt counts once, however many answers it has."""

    def __init__(self, prompts: Sequence[Sequence[int]]) -> None:
        self._num_prompt_tokens = sum(map(len, prompts))
        self._cached = [NOTHING_CACHED] * len(prompts)
        self._num_generated = 0
        self._fingerprints: set[str] = set()

    def add(self, piece: Piece, prompt_index: int = 0) -> None:
        """Count what a piece brought for one of the prompts.

        The first answer says what was cached: the others find the prompt that it left there.
        """
        if piece.index == 0:
            self._cached[prompt_index] = piece.cached
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
            "prompt_tokens_details": self._details(),
        }

    def _details(self) -> PromptTokensDetails:
        return {
            "cached_tokens": sum(each.total for each in self._cached),
            "cached_tokens_by_tier": {
                "device": sum(each.device for each in self._cached),
                "host": sum(each.host for each in self._cached),
                "disk": sum(each.disk for each in self._cached),
                "remote": sum(each.remote for each in self._cached),
            },
        }
