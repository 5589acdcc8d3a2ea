"""One attempt at a stream: a control call to some replica, and the tokens that it sends aside."""

import asyncio
from collections.abc import Callable, Collection
from dataclasses import replace

from ray.exceptions import RayError
from ray.serve.exceptions import RayServeException

from deployments.channels.framing import WireError
from deployments.master.client import MasterClient, Route
from deployments.role_pool import RolePool
from deployments.token_stream.listener import TokenListener
from deployments.token_stream.streams import TokenStream
from deployments.token_stream.wire import (
    Call,
    Finished,
    NeedsTcp,
    Record,
    Refused,
    StreamKey,
    decode_record,
    encode,
)
from rtp_serve.engine.request import Request
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


class AttemptStarter:
    """Starts attempts at the replicas of a pool; belongs to one event loop."""

    def __init__(
        self,
        replicas: RolePool,
        listener: TokenListener,
        master: MasterClient | None = None,
    ) -> None:
        """Without `master` Serve chooses the replicas."""
        self._replicas = replicas
        self._listener = listener
        self._master = master
        self._calls: set[asyncio.Task[None]] = set()

    @property
    def num_calls(self) -> int:
        """Control calls that are open."""
        return len(self._calls)

    @property
    def is_closed(self) -> bool:
        """Whether the ingress has stopped listening, so that no attempt can succeed."""
        return self._listener.is_closed

    def start(
        self,
        request: Request,
        before: StreamKey | None,
        on_opened: Callable[[], None],
        excluded: Collection[str] = (),
    ) -> "Attempt":
        """Another attempt at the stream of the attempt `before`, or the first one of a new stream.

        `on_opened` is called when a replica has taken it; `excluded` are better not asked.
        """
        stream = self._listener.open_stream(request, before, on_opened)
        call = asyncio.create_task(self._call(stream, _named(request, stream.key), excluded))
        self._calls.add(call)
        call.add_done_callback(self._calls.discard)
        return Attempt(request, stream, call, self._listener)

    async def _call(self, stream: TokenStream, request: Request, excluded: Collection[str]) -> None:
        """Hold the control call open; whatever ends it badly fails the stream."""
        try:
            record = await self._route_and_run(stream, request, excluded)
        except (RayError, RayServeException, WireError) as error:
            stream.fail(EngineDead(f"the replica failed: {type(error).__name__}"))
        except OSError as error:
            stream.fail(EngineDead(f"the ingress cannot listen for tokens: {error}"))
        except Overloaded as error:
            stream.fail(error)
        except asyncio.CancelledError:
            stream.fail(EngineDead("the call was cancelled"))
            raise
        else:
            self._conclude(stream, record)

    async def _route_and_run(
        self, stream: TokenStream, request: Request, excluded: Collection[str]
    ) -> Record:
        """Raises Overloaded if the Master refuses it."""
        if self._master is None:
            return await self._run(stream, request, None)
        route = await self._master.choose(request, excluded)
        if route is None:
            return await self._run(stream, request, None)
        stream.asked = route.replica
        record: Record | None = None
        try:
            record = await self._run(stream, request, route)
            return record
        finally:
            self._master.ended(route, is_finished=isinstance(record, Finished))

    async def _run(self, stream: TokenStream, request: Request, route: Route | None) -> Record:
        record = await self._ask(stream, request, route)
        if isinstance(record, NeedsTcp):
            await self._listener.open_tcp()
            record = await self._ask(stream, request, route)
        return record

    async def _ask(self, stream: TokenStream, request: Request, route: Route | None) -> Record:
        prefill = "" if route is None else route.prefill
        call = encode(Call(self._listener.address, stream.key, request, prefill))
        named = {} if route is None else {"replica": route.replica}
        response = self._replicas.handle(**named).run.remote(call, **named)
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


class Attempt:
    """Close it, whatever became of it."""

    def __init__(
        self,
        request: Request,
        stream: TokenStream,
        call: asyncio.Task[None],
        listener: TokenListener,
    ) -> None:
        self.request = request
        self.tokens = stream
        """Read them until they end or raise what ends the attempt early."""

        self._call = call
        self._listener = listener
        self._deadline: asyncio.TimerHandle | None = None

    @property
    def key(self) -> StreamKey:
        return self.tokens.key

    def fail_unless_opened(self, deadline_s: float, error: RtpServeError) -> None:
        """At `deadline_s` of the loop's time."""

        def give_up() -> None:
            if not self.tokens.is_opened:
                self.tokens.fail(error)

        self._deadline = asyncio.get_running_loop().call_at(deadline_s, give_up)

    def close(self) -> None:
        """Have the replica end what it has not finished."""
        if self._deadline is not None:
            self._deadline.cancel()
        if not self._listener.close_stream(self.tokens):
            self._call.cancel()


def _named(request: Request, key: StreamKey) -> Request:
    """Under a name of the attempt's own: the replica of an earlier one may be this one's, and not
    done with it yet."""
    if key.attempt == 1:
        return request
    return replace(request, request_id=f"{request.request_id}#{key.attempt}")


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
