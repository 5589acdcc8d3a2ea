"""Which blocks have become findable and which no longer are, for somebody who keeps a copy.

    pool ──note──► turned ──settle──► found, waiting ──take──► BlockNews
    └────────── engine's thread ───────────┘           └─ any thread ─┘

The pool notes a hash each time that it changes sides, which costs an append. The engine settles
between steps, so that what a step registers counts when it has been computed. A hash that changed
sides twice between two takes is in neither list. When too many wait, they are dropped, and the next
news is everything.
"""

import threading
from collections.abc import Iterable
from dataclasses import dataclass

from rtp_serve.kv_cache.block import BlockHash


@dataclass(frozen=True, slots=True)
class BlockNews:
    """What has changed, or all that is there."""

    added: tuple[BlockHash, ...]

    removed: tuple[BlockHash, ...] = ()

    is_all: bool = False
    """`added` is all that can be found."""


class BlockChanges:
    """Of one pool, from the moment on when `found` was all that could be found in it."""

    def __init__(self, found: Iterable[BlockHash], max_waiting: int) -> None:
        """The first news is everything, unless there is nothing."""
        self._turned: list[BlockHash] = []
        self.note = self._turned.append
        """Called by the pool: a hash has changed sides."""

        self._max_waiting = max_waiting
        self._lock = threading.Lock()
        self._found = set(found)
        self._waiting: dict[BlockHash, bool] = {}  # whether it was added
        self._is_all_wanted = bool(self._found)

    @property
    def has_news(self) -> bool:
        """Whether there is anything to take."""
        return bool(self._waiting) or self._is_all_wanted

    def settle(self) -> None:
        """Between steps, on the engine's thread: what was noted is so."""
        if not self._turned:
            return
        found = self._found
        with self._lock:
            waiting = self._waiting
            for key in self._turned:
                is_added = key not in found
                (found.add if is_added else found.remove)(key)
                if waiting.pop(key, None) is None:
                    waiting[key] = is_added
            if self._is_all_wanted or len(waiting) > self._max_waiting:
                self._is_all_wanted = True
                waiting.clear()
        self._turned.clear()

    def want_all(self) -> None:
        """The next news is to be everything."""
        with self._lock:
            self._is_all_wanted = True
            self._waiting.clear()

    def take(self) -> BlockNews | None:
        """What has changed since the last call; None if nothing has."""
        with self._lock:
            if self._is_all_wanted:
                self._is_all_wanted = False
                return BlockNews(tuple(self._found), is_all=True)
            if not self._waiting:
                return None
            waiting, self._waiting = self._waiting, {}
        added = tuple(key for key, is_added in waiting.items() if is_added)
        removed = tuple(key for key, is_added in waiting.items() if not is_added)
        return BlockNews(added, removed)
