"""Which requests an engine has, and what has become of them since somebody last asked.

    submitted ──► waiting ──prefilled──► running ──► ended
                     └─────────────────────────────────┘

Steps, preemptions and restores change nothing here: a request is in one of the two from `submit`
until its last sequence has ended, or it was aborted.
"""

import threading
from collections import deque
from dataclasses import dataclass

from rtp_serve.engine.request import Request
from rtp_serve.routing.types import Prefilled, PrefillPoint

_MAX_WAITING = 1 << 16
"""Ends and first tokens that wait to be told; older ones are dropped, and the Master then takes
those requests for lost."""


@dataclass(slots=True)
class _Live:
    request: Request
    num_unfinished: int
    """Of its sequences."""

    has_token: bool = False


@dataclass(frozen=True, slots=True)
class RequestNews:
    """What there is, and what has happened since the last."""

    waiting_ids: tuple[str, ...]
    running_ids: tuple[str, ...]
    num_decoding: int
    """Sequences of those that run."""

    prefilled: tuple[Prefilled, ...]
    finished_ids: tuple[str, ...]


class RequestLog:
    """For any thread. Requests that were submitted before it was there are none of it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._live: dict[str, _Live] = {}
        self._prefilled: deque[Prefilled] = deque(maxlen=_MAX_WAITING)
        self._finished: deque[str] = deque(maxlen=_MAX_WAITING)
        self._has_news = True

    @property
    def has_news(self) -> bool:
        """Whether anything has happened since the last `take`."""
        return self._has_news

    def submitted(self, request: Request) -> None:
        with self._lock:
            self._live[request.request_id] = _Live(request, len(request.indices))
            self._has_news = True

    def prefilled(self, request: Request, point: PrefillPoint) -> None:
        """One of its sequences has its first token; of others this says nothing new."""
        with self._lock:
            live = self._live.get(request.request_id)
            # Its id may be in use again.
            if live is None or live.request is not request or live.has_token:
                return
            live.has_token = True
            self._prefilled.append(Prefilled(request.request_id, point))
            self._has_news = True

    def sequence_ended(self, request_id: str) -> None:
        """One of its sequences; the last one ends it."""
        with self._lock:
            live = self._live.get(request_id)
            if live is not None:
                live.num_unfinished -= 1
                if not live.num_unfinished:
                    self._end(request_id)

    def ended(self, request_id: str) -> None:
        """All of it, before its end."""
        with self._lock:
            if request_id in self._live:
                self._end(request_id)

    def take(self) -> RequestNews:
        """What has happened is told once."""
        with self._lock:
            prefilled, finished = tuple(self._prefilled), tuple(self._finished)
            self._prefilled.clear()
            self._finished.clear()
            self._has_news = False
            running = {key: live for key, live in self._live.items() if live.has_token}
            return RequestNews(
                tuple(key for key in self._live if key not in running),
                tuple(running),
                sum(live.num_unfinished for live in running.values()),
                prefilled,
                finished,
            )

    def _end(self, request_id: str) -> None:
        del self._live[request_id]
        self._finished.append(request_id)
        self._has_news = True
