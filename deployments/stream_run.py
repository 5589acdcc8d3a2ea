"""One request over all its attempts.

A lost attempt is followed by another one at once. A withdrawn replica goes on with the stream until
another one has taken the rest of it: where there is none, or none with the stream's model, it ends
where it is. A replica that has another role now is withdrawn, too. An attempt that nobody has taken
yet may be waiting for the withdrawn one, which may never answer: it is made again.

    withdrawn replica ─ tokens ───────────────► closed
                          │ the rest of now       ▲ it has taken that
                          └───► another replica ──┴─ tokens, less those that came meanwhile ─►
"""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import suppress

from deployments.attempt import Attempt, AttemptStarter
from deployments.journal import StreamJournal
from deployments.live_replicas import Replicas, ReplicaWithdrawn
from deployments.replica_search import ReplicaSearch
from deployments.token_stream.wire import StreamKey
from rtp_serve.engine.request import Request, SequenceDelta
from rtp_serve.errors import EngineDead, Overloaded, RtpServeError

# Between two replicas that do not take what a withdrawn one still runs.
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.05, 2.0


class StreamRun:
    """Belongs to one event loop."""

    def __init__(
        self,
        request: Request,
        attempts: AttemptStarter,
        search: ReplicaSearch,
        live: Replicas,
    ) -> None:
        self._journal = StreamJournal(request)
        self._attempts = attempts
        self._search = search
        self._live = live
        self._loop = asyncio.get_running_loop()
        self._last_key: StreamKey | None = None
        self._current: Attempt | None = None
        self._next: Attempt | None = None
        self._newest: Attempt | None = None
        self._asked: frozenset[str] = frozenset()
        self._excluded: set[str] = set()
        self._moving: asyncio.Task[None] | None = None

    async def deltas(self) -> AsyncGenerator[SequenceDelta, None]:
        """What the client is to get."""
        self._live.watch(self._replicas_changed)
        try:
            while True:
                self._current = attempt = self._next or self._start_search()
                self._next = None
                self._journal.follow(attempt.request)
                self._move_if_withdrawn()
                try:
                    async for delta in attempt.tokens:
                        news = self._journal.take(delta)
                        if news is not None:
                            self._search.found()
                            yield news
                    return
                except (EngineDead, Overloaded) as error:
                    if self._attempts.is_closed:
                        raise
                    self._exclude(attempt)
                    pause_s = self._search.pause_after(error, is_lost=attempt.tokens.is_opened)
                    if pause_s is None:
                        raise
                finally:
                    self._current = None
                    attempt.close()
                    await self._stop_moving()
                await asyncio.sleep(pause_s)
        finally:
            self._live.unwatch(self._replicas_changed)
            if self._next is not None:
                self._next.close()

    def _start(self) -> Attempt:
        attempt = self._attempts.start(
            self._journal.rest, self._last_key, self._move_if_withdrawn, self._excluded
        )
        self._last_key = attempt.key
        self._newest, self._asked = attempt, self._live.names or frozenset()
        return attempt

    def _exclude(self, attempt: Attempt) -> None:
        """Whoever has lost or refused it is better not asked again."""
        name = attempt.tokens.replica or attempt.tokens.asked
        if name:
            self._excluded.add(name)

    def _start_search(self) -> Attempt:
        attempt = self._start()
        attempt.fail_unless_opened(self._search.deadline_s, self._search.is_in_vain)
        return attempt

    def _replicas_changed(self) -> None:
        with suppress(RuntimeError):  # the loop closed with the ingress
            self._loop.call_soon_threadsafe(self._leave_withdrawn)

    def _leave_withdrawn(self) -> None:
        names = self._live.names or frozenset()
        if self._newest is not None and not self._newest.tokens.is_opened and self._asked - names:
            self._newest.tokens.fail(EngineDead("the replica that was asked may be withdrawn"))
        self._move_if_withdrawn()

    def _move_if_withdrawn(self) -> None:
        current = self._current
        if current is None or self._moving is not None or not self._search.may_move:
            return
        if current.tokens.is_opened and self._live.lacks(current.tokens.replica):
            self._moving = asyncio.create_task(self._move_from(current))

    async def _move_from(self, attempt: Attempt) -> None:
        """Have another replica take the rest, then end `attempt`."""
        pause_s = _FIRST_PAUSE_S
        while self._journal.rest.indices:
            other = self._start()
            try:
                await other.tokens.until_opened()
                self._next = other
                attempt.tokens.fail(ReplicaWithdrawn("the replica is being withdrawn"))
                return
            except RtpServeError:
                self._exclude(other)
                await asyncio.sleep(pause_s)
                pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)
            finally:
                if self._next is not other:
                    other.close()

    async def _stop_moving(self) -> None:
        if self._moving is not None:
            self._moving.cancel()
            await asyncio.gather(self._moving, return_exceptions=True)
            self._moving = None
