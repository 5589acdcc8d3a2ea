"""The ingress's EngineClient: a control call by handle, tokens by the token channel."""

import asyncio
from collections.abc import AsyncGenerator, Sequence
from typing import Any

from ray.exceptions import RayError, RayTaskError
from ray.serve.exceptions import RayServeException
from ray.serve.handle import DeploymentHandle

from deployments.exposition import merge_expositions
from deployments.token_stream.listener import TokenListener
from deployments.token_stream.streams import TokenStream
from deployments.token_stream.wire import (
    Call,
    Finished,
    NeedsTcp,
    Record,
    Refused,
    WireError,
    decode_record,
    encode,
)
from rtp_serve.engine.cache_answers import CacheStats, Pinned, Trimmed
from rtp_serve.engine.client import Reloaded, ServedModel
from rtp_serve.engine.request import Request, SequenceDelta
from rtp_serve.errors import (
    ContextLengthExceeded,
    EngineDead,
    InvalidRequest,
    NoKVTiers,
    Overloaded,
    ReloadFailed,
    RtpServeError,
)

_STATUS_TIMEOUT_S = 10.0
# A large model is read for minutes, and before it the streams on an older version end.
_RELOAD_TIMEOUT_S = 3600.0
# A stream whose record is here has its last tokens on the wire.
_LAST_TOKENS_TIMEOUT_S = 5.0


class ReplicaClient:
    """Runs requests on the replicas behind `handle`; belongs to one event loop."""

    def __init__(
        self, handle: DeploymentHandle, listener: TokenListener, replica_timeout_s: float
    ) -> None:
        self._handle = handle
        self._listener = listener
        self._replica_timeout_s = replica_timeout_s
        self._model: ServedModel | None = None
        self._calls: set[asyncio.Task[None]] = set()

    async def generate(self, request: Request) -> AsyncGenerator[SequenceDelta, None]:
        stream = self._listener.open_stream(request)
        call = asyncio.create_task(self._call(stream, request))
        self._calls.add(call)
        call.add_done_callback(self._calls.discard)
        loop = asyncio.get_running_loop()
        deadline = loop.call_later(self._replica_timeout_s, self._give_up, stream)
        try:
            async for delta in stream:
                yield delta
        finally:
            deadline.cancel()
            if not self._listener.close_stream(stream):
                call.cancel()

    def _give_up(self, stream: TokenStream) -> None:
        if not self._listener.is_opened(stream):
            seconds = self._replica_timeout_s
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

    async def served_model(self) -> ServedModel:
        if self._model is None:
            try:
                async with asyncio.timeout(self._replica_timeout_s):
                    self._model = await self._handle.served_model.remote()
            except (RayError, RayServeException, TimeoutError) as error:
                raise EngineDead(f"no replica answers: {type(error).__name__}") from error
        return self._model

    async def reload(self) -> list[Reloaded]:
        results = await self._ask_all("reload", _RELOAD_TIMEOUT_S)
        failed = [result for result in results if isinstance(result, Exception)]
        if failed:
            reasons = "; ".join(map(_reason, failed))
            raise ReloadFailed(
                f"{len(failed)} of {len(results)} replicas go on with the weights they had: "
                f"{reasons}"
            )
        return results

    async def cache_stats(self) -> list[CacheStats]:
        return await self._broadcast("cache_stats")

    async def trim_cache(self, num_bytes: int) -> list[Trimmed]:
        return await self._ask_stores("trim_cache", num_bytes)

    async def pin_prefix(
        self, token_ids: Sequence[int], cache_salt: str, ttl_s: float
    ) -> list[Pinned]:
        return await self._ask_stores("pin_prefix", tuple(token_ids), cache_salt, ttl_s)

    async def _ask_stores(self, method: str, *arguments: Any) -> list[Any]:
        """The answers of one replica of each node's store. Raises NoKVTiers or EngineDead."""
        replicas = one_of_each_store(await self.cache_stats())
        if not replicas:
            raise NoKVTiers
        answers = await self._broadcast(method, replicas, *arguments)
        by_store = [answer for answer in answers if answer is not None]
        if not by_store:
            raise EngineDead("the replicas that were to ask their stores are gone")
        return by_store

    async def check_health(self) -> None:
        await self._broadcast("check_health")

    async def metrics_text(self) -> str:
        return merge_expositions(dict(await self._broadcast("metrics_text")))

    async def _broadcast(self, method: str, *arguments: Any) -> list[Any]:
        """The answers of the replicas that answer. Raises EngineDead when none does."""
        results = await self._ask_all(method, _STATUS_TIMEOUT_S, *arguments)
        answers = [result for result in results if not isinstance(result, Exception)]
        if not answers:
            raise EngineDead("no replica answers")
        return answers

    async def _ask_all(self, method: str, timeout_s: float, *arguments: Any) -> list[Any]:
        """What each replica returns or raises. Raises EngineDead when there is none to ask."""
        try:
            response = self._handle.broadcast(method, *arguments)
            results = await response.results_async(timeout_s=timeout_s, return_exceptions=True)
        except (RayError, RayServeException, TimeoutError) as error:
            raise EngineDead(f"no replica answers: {type(error).__name__}") from error
        if not results:
            raise EngineDead("no replica answers")
        return list(results)


def one_of_each_store(stats: Sequence[CacheStats]) -> frozenset[str]:
    """Replicas, one for each store, that can ask it: rather one that has an answer from it now."""
    chosen: dict[str, CacheStats] = {}
    for each in stats:
        if each.tiers is None:
            continue
        if each.tiers.store not in chosen or each.tiers.stats.is_answering:
            chosen[each.tiers.store] = each
    return frozenset(each.replica for each in chosen.values())


def _reason(error: Exception) -> str:
    """Without the traceback that Ray puts into the text."""
    cause = error.cause if isinstance(error, RayTaskError) else error
    return cause.message if isinstance(cause, RtpServeError) else type(cause).__name__


def _error_of(record: Refused) -> RtpServeError:
    """The error a replica refused with, as it was raised there."""
    match record.code:
        case Overloaded.code:
            return Overloaded(record.message, record.retry_after_s)
        case ContextLengthExceeded.code:
            return ContextLengthExceeded(record.message, record.param)
        case InvalidRequest.code:
            return InvalidRequest(record.message, record.param)
    return EngineDead(record.message)
