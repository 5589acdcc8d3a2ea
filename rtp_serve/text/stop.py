"""Finds stop strings in a text that comes in pieces.

Where the text is cut makes no difference: the match that ends first wins, of two that end together
the longer one.
"""


class StopChecker:
    """One sequence's search. Holds back the end of the text while it may begin a stop string."""

    def __init__(self, stop: tuple[str, ...], include_stop: bool = False) -> None:
        self._stop = stop
        self._include_stop = include_stop
        self._held = ""
        self.matched: str | None = None
        """The stop string that was found; nothing is pushed out after it."""

    def push(self, text: str) -> str:
        """The text that is certain to come before any stop string."""
        if self.matched is not None:
            return ""
        if not self._stop:
            return text
        text = self._held + text
        found = [
            (start + len(stop), start) for stop in self._stop if (start := text.find(stop)) >= 0
        ]
        if found:
            end, start = min(found)
            self.matched = text[start:end]
            self._held = ""
            return text[: end if self._include_stop else start]
        first_held = min(_first_possible_start(text, stop) for stop in self._stop)
        self._held = text[first_held:]
        return text[:first_held]

    def finish(self) -> str:
        """What was held back: no more text comes, so it begins no stop string."""
        held, self._held = self._held, ""
        return held


def _first_possible_start(text: str, stop: str) -> int:
    """Where the longest end of `text` begins that is the start of `stop`; len(text) if none is."""
    start = text.find(stop[0], max(0, len(text) - len(stop) + 1))
    while start >= 0:
        if stop.startswith(text[start:]):
            return start
        start = text.find(stop[0], start + 1)
    return len(text)
