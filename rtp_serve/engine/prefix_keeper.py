"""Keeps the prefixes that the configuration names in the node's arena.

    pin ── all there ──────────────────────────────────────────────► look again in a minute
     └──── something is missing ──► compute it ──► pin again, every second, some times ──┘

Every engine does it for its node's store, whose pins count once. Pins have a time and are renewed,
so a store that starts anew has them again, and those of weights that were exchanged run out. What
cannot be kept is a warning, and told with the statistics; no start fails for it.
"""

import logging
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from rtp_serve.engine.cache_answers import KeptPrefix
from rtp_serve.engine.cache_control import CacheControl
from rtp_serve.errors import RtpServeError

_LOOK_AGAIN_S = 60.0
_SOON_S = 1.0
_TTL_S = 10 * _LOOK_AGAIN_S
_NUM_SOON = 10
"""Looks after which what is missing is said to be: blocks are stored beside steps."""

_log = logging.getLogger(__name__)

Compute = Callable[[Sequence[int], str], None]
"""Has the engine compute a prompt under a salt, and waits for it; its blocks are then stored, also
those that the device had. Raises RtpServeError."""


@dataclass(frozen=True, slots=True)
class PrefixToKeep:
    """Of the configuration, as tokens."""

    name: str
    token_ids: tuple[int, ...]
    cache_salt: str = ""


@dataclass(slots=True)
class _Kept:
    prefix: PrefixToKeep
    num_tokens: int
    num_pinned: int = 0
    version: int | None = None
    """Of the model that computed it."""

    num_looks: int = 0
    """Since then, without finding all of it."""

    @property
    def is_whole(self) -> bool:
        return self.num_pinned == self.num_tokens


class PrefixKeeper:
    """Of one engine."""

    def __init__(
        self, prefixes: Sequence[PrefixToKeep], caches: CacheControl, compute: Compute
    ) -> None:
        """Does nothing yet; `run` is for a thread."""
        size = caches.block_size
        self._caches = caches
        self._compute = compute
        self._kept = [_Kept(each, len(each.token_ids) // size * size) for each in prefixes]
        self._is_closed = threading.Event()

    @property
    def kept(self) -> tuple[KeptPrefix, ...]:
        """As of the last look. For any thread."""
        return tuple(
            KeptPrefix(each.prefix.name, each.num_tokens, each.num_pinned) for each in self._kept
        )

    def run(self) -> None:
        """Until `close`."""
        while not self._is_closed.is_set():
            self._is_closed.wait(_SOON_S if self.look() else _LOOK_AGAIN_S)

    def close(self) -> None:
        """Ends `run`, unless a prefix is being computed: then after that."""
        self._is_closed.set()

    def look(self) -> bool:
        """Pin what is there and compute what is missing; whether to look again soon."""
        looks = [self._look(each) for each in self._kept if not self._is_closed.is_set()]
        return any(looks)

    def _look(self, kept: _Kept) -> bool:
        prefix, before = kept.prefix, kept.num_pinned
        try:
            version = self._caches.version
            kept.num_pinned = self._pin(prefix)
            if kept.is_whole:
                kept.num_looks = 0
                return False
            is_lost = kept.num_pinned < before
            if is_lost or kept.version != version or kept.num_looks > _NUM_SOON:
                self._compute(prefix.token_ids, prefix.cache_salt)
                if is_lost or kept.version != version:
                    kept.num_looks = 0
                kept.version = version
                kept.num_pinned = self._pin(prefix)
        except RtpServeError as error:
            kept.num_looks = max(kept.num_looks, _NUM_SOON - 1)
            return self._count_look(kept, error.message)
        return self._count_look(
            kept, "the arena has no room, pins have their share of it, or nobody answers"
        )

    def _pin(self, prefix: PrefixToKeep) -> int:
        return self._caches.pin(prefix.token_ids, prefix.cache_salt, _TTL_S).num_tokens

    def _count_look(self, kept: _Kept, reason: str) -> bool:
        if kept.is_whole:
            return False
        kept.num_looks += 1
        if kept.num_looks == _NUM_SOON:
            _log.warning(
                "kv_store.pinned: of %r %d tokens of %d are kept: %s",
                kept.prefix.name, kept.num_pinned, kept.num_tokens, reason,
            )  # fmt: skip
        return kept.num_looks < _NUM_SOON
