"""A stream as its two ends see it: what the ingress reads, what the replica tallies."""

import asyncio
from collections import deque
from collections.abc import Callable, Sequence

from deployments.token_stream.wire import Finished, StreamKey
from rtp_serve.engine.request import NOTHING_CACHED, FinishReason, SequenceDelta
from rtp_serve.errors import EngineDead


class ChannelLost(EngineDead):
    """The connection between a replica and an ingress broke, or was cut for not being read."""

    code = "token_channel_lost"


class TokenStream:
    """The ingress's end: deltas in, in order, until every sequence has a finish reason.

    Belongs to one event loop. An error is raised once all deltas before it were read.
    """

    def __init__(
        self,
        key: StreamKey,
        request_id: str,
        num_sequences: int,
        on_opened: Callable[[], None] | None = None,
    ) -> None:
        self.key = key
        self.request_id = request_id
        self.replica = ""
        """Which one has taken it, now or in its past; none yet while empty."""

        self.asked = ""
        """Which one was chosen for it; empty if Serve chooses."""

        self._on_opened = on_opened
        self._num_unfinished = num_sequences
        self._pending: deque[SequenceDelta] = deque()
        self._error: Exception | None = None
        self._changed = asyncio.Event()

    @property
    def is_opened(self) -> bool:
        return bool(self.replica)

    @property
    def is_complete(self) -> bool:
        """Whether the last delta of every sequence has arrived."""
        return self._num_unfinished == 0

    def opened(self, replica: str) -> None:
        """That replica's engine has taken it."""
        self.replica = replica
        self._changed.set()
        if self._on_opened is not None:
            self._on_opened()

    def push(self, delta: SequenceDelta) -> None:
        self._pending.append(delta)
        if delta.finish_reason is not None:
            self._num_unfinished -= 1
        self._changed.set()

    def fail(self, error: Exception) -> None:
        """End the stream with `error`, unless it is complete or has failed before."""
        if not self.is_complete and self._error is None:
            self._error = error
            self._changed.set()

    async def until_opened(self) -> None:
        """Raises what the stream failed with before a replica took it. While nobody reads it."""
        while not self.is_opened:
            if self._error is not None:
                raise self._error
            self._changed.clear()
            await self._changed.wait()

    def __aiter__(self) -> "TokenStream":
        return self

    async def __anext__(self) -> SequenceDelta:
        while not self._pending:
            if self._error is not None:
                raise self._error
            if self.is_complete:
                raise StopAsyncIteration
            self._changed.clear()
            await self._changed.wait()
        return self._pending.popleft()


class StreamTally:
    """The replica's end: counts what was sent and resolves `finished` with the record.

    `finished` raises ChannelLost when the ingress cannot be reached any more.
    """

    def __init__(self, key: StreamKey, indices: Sequence[int]) -> None:
        """`indices` are of the sequences that run."""
        self.key = key
        self.finished: asyncio.Future[Finished] = asyncio.get_running_loop().create_future()
        self._reasons: dict[int, FinishReason | None] = dict.fromkeys(indices)
        self._num_tokens = dict.fromkeys(indices, 0)
        self._cached = NOTHING_CACHED
        self.on_first_token: Callable[[], None] | None = None
        """Called once, with the first delta that has tokens."""

    @property
    def num_tokens(self) -> int:
        """Of all sequences, so far."""
        return sum(self._num_tokens.values())

    def count(self, delta: SequenceDelta) -> None:
        if delta.token_ids and self.on_first_token is not None:
            self.on_first_token()
            self.on_first_token = None
        self._num_tokens[delta.index] += len(delta.token_ids)
        self._cached = max(self._cached, delta.cached)
        if delta.finish_reason is not None:
            self._reasons[delta.index] = delta.finish_reason
            if all(self._reasons.values()):
                self.end()

    def end(self) -> None:
        """Close the record; sequences that have not finished count as aborted."""
        if not self.finished.done():
            reasons = tuple(reason or FinishReason.ABORT for reason in self._reasons.values())
            record = Finished(reasons, tuple(self._num_tokens.values()), self._cached)
            self.finished.set_result(record)

    def fail(self, error: ChannelLost) -> None:
        if not self.finished.done():
            self.finished.set_exception(error)
