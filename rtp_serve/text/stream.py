"""One sequence's token ids → the text a client gets: detokenized, cut at a stop string."""

from collections.abc import Sequence
from dataclasses import dataclass

from rtp_serve.text.detokenizer import make_detokenizer
from rtp_serve.text.stop import StopChecker
from rtp_serve.text.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True)
class TextDelta:
    """What a push added."""

    text: str
    finished: bool
    """The text is complete: the engine's last tokens came, or a stop string was found."""

    stop: str | None
    """The stop string, if that is why."""

    num_tokens: int
    """Tokens of the push that count as generated: all, or those up to the stop string's end."""


class TextStream:
    """Text of a sequence that is being generated.

    After a delta with `stop` the sequence should be aborted; what is pushed later is ignored.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        *,
        stop: tuple[str, ...] = (),
        include_stop: bool = False,
        min_tokens: int = 0,
        skip_special_tokens: bool = True,
    ) -> None:
        """Text of the first `min_tokens` tokens is not searched for stop strings."""
        self._detokenizer = make_detokenizer(tokenizer, skip_special_tokens)
        self._checker = StopChecker(stop, include_stop)
        self._has_stop = bool(stop)
        self._include_stop = include_stop
        self._num_unsearched = min_tokens
        self._is_finished = False

    def push(self, token_ids: Sequence[int], finish_reason: str | None = None) -> TextDelta:
        """Take the sequence's next tokens; with `finish_reason` they are its last.

        With "stop", the last token is the one that ended the sequence; it gives text only if stops
        are included.
        """
        if self._is_finished:
            return TextDelta("", True, self._checker.matched, 0)
        shown = token_ids
        if finish_reason == "stop" and not self._include_stop:
            shown = token_ids[:-1]
        text, num_tokens = self._push_each(shown) if self._has_stop else self._push_all(shown)
        if finish_reason is not None and self._checker.matched is None:
            num_tokens = len(token_ids)
            text += self._search(self._detokenizer.finish()) + self._checker.finish()
        stop = self._checker.matched
        self._is_finished = finish_reason is not None or stop is not None
        return TextDelta(text, self._is_finished, stop, num_tokens)

    def _push_all(self, token_ids: Sequence[int]) -> tuple[str, int]:
        return self._detokenizer.push(token_ids), len(token_ids)

    def _push_each(self, token_ids: Sequence[int]) -> tuple[str, int]:
        """Token by token, so that it is known which one completed a stop string."""
        pieces = []
        for index, token_id in enumerate(token_ids):
            piece = self._detokenizer.push((token_id,))
            if self._num_unsearched:
                self._num_unsearched -= 1
                pieces.append(piece)
                continue
            pieces.append(self._checker.push(piece))
            if self._checker.matched is not None:
                return "".join(pieces), index + 1
        return "".join(pieces), len(token_ids)

    def _search(self, text: str) -> str:
        return text if self._num_unsearched else self._checker.push(text)
