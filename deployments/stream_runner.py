"""Streams over replicas that come and go.

    request ─► journal ─► attempt 1 at some replica ─► deltas ─► client
                 │            ✗ the replica is lost
                 └─ the rest ─► attempt 2 at another one ─► deltas ─► client

An attempt is lost once a replica had taken it, and refused before. Losses are bounded by number;
the search for a replica that takes the rest, by time.
"""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass, replace

from ray.exceptions import RayError
from ray.serve.exceptions import RayServeException
from ray.serve.handle import DeploymentHandle

from deployments.journal import EngineFailed, StreamJournal
from deployments.resumption_figures import ResumptionFigures
from deployments.token_stream.listener import TokenListener
from deployments.token_stream.streams import TokenStream
from deployments.token_stream.wire import (
    Call,
    Finished,
    NeedsTcp,
    Record,
    Refused,
    StreamKey,
    WireError,
    decode_record,
    encode,
)
from rtp_serve.engine.request import Request, SequenceDelta
from rtp_serve.errors import (
    ContextLengthExceeded,
    EngineDead,
    InvalidRequest,
    ModelChanged,
    Overloaded,
    RtpServeError,
)

# A stream whose record is here has its last tokens on the wire.
_LAST_TOKENS_TIMEOUT_S = 5.0
# A request that has failed so many engines without a token may be why they failed.
_MAX_FAILED_ENGINES = 2
# Between two replicas that refuse: Serve may not have heard yet that one is gone.
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.02, 0.5


@dataclass(frozen=True, slots=True)
class StreamLimits:
    """How much trouble a stream outlives."""

    replica_timeout_s: float
    """Time to find a replica that takes it, at first and after each loss."""

    max_resumptions: int
    """Losses of its replica; with one more it ends with an error."""


class StreamRunner:
    """Runs requests on the replicas behind a handle; belongs to one event loop."""

    def __init__(
        self,
        handle: DeploymentHandle,
        listener: TokenListener,
        limits: StreamLimits,
        figures: ResumptionFigures,
    ) -> None:
        self._handle = handle
        self._listener = listener
        self._limits = limits
        self._figures = figures
        self._calls: set[asyncio.Task[None]] = set()

    @property
    def num_calls(self) -> int:
        """Control calls that are open."""
        return len(self._calls)

    async def generate(self, request: Request) -> AsyncGenerator[SequenceDelta, None]:
        """See EngineClient: the deltas of one uninterrupted request, whatever happens between."""
        journal = StreamJournal(request)
        search = _Search(self._limits, self._figures)
        key: StreamKey | None = None
        while True:
            rest = journal.rest
            stream = self._listener.open_stream(rest, key)
            key = stream.key
            try:
                async with aclosing(self._attempt(stream, rest, search.deadline_s)) as deltas:
                    async for delta in deltas:
                        taken = journal.take(delta)
                        search.found()
                        yield taken
                return
            except (EngineDead, Overloaded) as error:
                if self._listener.is_closed:
                    raise
                pause_s = search.pause_after(error, is_lost=stream.is_opened)
                if pause_s is None:
                    raise
            await asyncio.sleep(pause_s)

    async def _attempt(
        self, stream: TokenStream, request: Request, deadline_s: float
    ) -> AsyncGenerator[SequenceDelta, None]:
        """What one replica makes of `request`. Raises what ends it early."""
        call = asyncio.create_task(self._call(stream, request))
        self._calls.add(call)
        call.add_done_callback(self._calls.discard)
        deadline = asyncio.get_running_loop().call_at(deadline_s, self._give_up, stream)
        try:
            async for delta in stream:
                yield delta
        finally:
            deadline.cancel()
            if not self._listener.close_stream(stream):
                call.cancel()

    def _give_up(self, stream: TokenStream) -> None:
        if not stream.is_opened:
            seconds = self._limits.replica_timeout_s
            stream.fail(EngineDead(f"no replica took the request within {seconds:g} s"))

    async def _call(self, stream: TokenStream, request: Request) -> None:
        """Hold the control call open; whatever ends it badly fails the stream."""
        try:
            record = await self._run(stream, request)
            if isinstance(record, NeedsTcp):
                await self._listener.open_tcp()
                record = await self._run(stream, request)
        except (RayError, RayServeException, WireError) as error:
            stream.fail(EngineDead(f"the replica failed: {type(error).__name__}"))
        except OSError as error:
            stream.fail(EngineDead(f"the ingress cannot listen for tokens: {error}"))
        except asyncio.CancelledError:
            stream.fail(EngineDead("the call was cancelled"))
            raise
        else:
            self._conclude(stream, record)

    async def _run(self, stream: TokenStream, request: Request) -> Record:
        if stream.key.attempt > 1:
            # The replica of an earlier attempt may be this one, and not done with it yet.
            request = replace(request, request_id=f"{request.request_id}#{stream.key.attempt}")
        call = Call(self._listener.address, stream.key, request)
        response = self._handle.run.remote(encode(call))
        try:
            return decode_record(await response)
        except asyncio.CancelledError:
            response.cancel()
            raise

    def _conclude(self, stream: TokenStream, record: Record) -> None:
        match record:
            case Refused():
                stream.fail(_error_of(record))
            case NeedsTcp():
                stream.fail(EngineDead("the replica could not use the ingress's TCP address"))
            case Finished():
                asyncio.get_running_loop().call_later(
                    _LAST_TOKENS_TIMEOUT_S,
                    stream.fail,
                    EngineDead("the last tokens of the stream did not arrive"),
                )


class _Search:
    """One stream's search for replicas: what it has lost, and how long it may go on."""

    def __init__(self, limits: StreamLimits, figures: ResumptionFigures) -> None:
        self._limits = limits
        self._figures = figures
        self._loop = asyncio.get_running_loop()
        self._num_losses = 0
        self._has_begun = False
        self._loss: RtpServeError | None = None
        self._lost_s = 0.0
        self._start()

    def _start(self) -> None:
        self.deadline_s = self._loop.time() + self._limits.replica_timeout_s
        self._pause_s = _FIRST_PAUSE_S

    def found(self) -> None:
        """A replica has given something."""
        self._has_begun = True
        if self._loss is not None:
            self._figures.resumed(self._loss, self._loop.time() - self._lost_s)
            self._loss = None

    def pause_after(self, error: RtpServeError, *, is_lost: bool) -> float | None:
        """Seconds until the next attempt; None where `error` is the stream's end.

        `is_lost` says that a replica had taken the stream, so that `error` is not a refusal.
        """
        if is_lost:
            return self._pause_after_loss(error)
        if isinstance(error, Overloaded) and not self._num_losses:
            return None  # the client has nothing yet and is to come back
        if self._loop.time() >= self.deadline_s:
            if self._num_losses:
                self._figures.dropped(self._loss or error)
            return None
        pause_s = self._pause_s
        self._pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)
        return min(pause_s, self.deadline_s - self._loop.time())

    def _pause_after_loss(self, error: RtpServeError) -> float | None:
        self._num_losses += 1
        is_suspect = isinstance(error, EngineFailed) and not self._has_begun
        if self._num_losses > self._limits.max_resumptions or (
            is_suspect and self._num_losses >= _MAX_FAILED_ENGINES
        ):
            self._figures.dropped(error)
            return None
        if self._loss is None:
            self._lost_s = self._loop.time()
        self._loss = error
        self._start()
        return 0.0


def _error_of(record: Refused) -> RtpServeError:
    """The error a replica refused with, as it was raised there."""
    match record.code:
        case Overloaded.code:
            return Overloaded(record.message, record.retry_after_s)
        case ContextLengthExceeded.code:
            return ContextLengthExceeded(record.message, record.param)
        case InvalidRequest.code:
            return InvalidRequest(record.message, record.param)
        case ModelChanged.code:
            return ModelChanged(record.message)
    return EngineDead(record.message)
