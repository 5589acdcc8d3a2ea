"""EngineReplica: one engine as a Serve replica.

Calls come by Serve's handles, tokens leave by the token channel. The engine steps on its own thread
without the GIL, so this process's event loops answer health checks through the longest step.
"""

import asyncio
import gc
from collections.abc import Callable
from typing import Protocol

import ray
from ray import serve

from deployments.metrics import RaySink
from deployments.token_stream.dialer import TcpNeeded, TokenDialer
from deployments.token_stream.wire import Call, NeedsTcp, Record, Refused, decode_call, encode
from rtp_serve.clock import Clock, WallClock
from rtp_serve.config.engine import EngineConfig
from rtp_serve.engine.async_engine import AsyncEngine
from rtp_serve.engine.client import ServedModel
from rtp_serve.errors import EngineDead, InvalidRequest, Overloaded, RtpServeError
from rtp_serve.observability.logging import configure_logging
from rtp_serve.observability.metrics import MetricsSink


class BuildEngine(Protocol):
    """`rtp_serve.build.build_engine`, or a stand-in."""

    def __call__(self, config: EngineConfig, *, clock: Clock, sink: MetricsSink) -> AsyncEngine: ...


def build_real_engine(config: EngineConfig, *, clock: Clock, sink: MetricsSink) -> AsyncEngine:
    # Imported here: the ingress and the builder import this module and must stay free of torch.
    from rtp_serve.build import build_engine

    return build_engine(config, clock=clock, sink=sink)


class EngineReplica:
    """Runs requests for ingresses. Its methods are called through Serve handles."""

    _close: Callable[[], None] | None = None

    async def __init__(  # type: ignore[misc]  # Serve awaits it
        self, config: EngineConfig, build: BuildEngine = build_real_engine
    ) -> None:
        """Load the model, in a thread: Serve keeps asking this process how it is."""
        configure_logging()
        self._replica = serve.get_replica_context().replica_id.unique_id
        self._dialer = TokenDialer(ray.get_runtime_context().get_node_id(), self._replica)
        ray_sink = RaySink()
        self._engine = await asyncio.to_thread(build, config, clock=WallClock(), sink=ray_sink)
        self._close = ray_sink.close
        # What is here now stays: a collection that looks at all of it would hold up a step.
        gc.collect()
        gc.freeze()

    async def run(self, data: bytes) -> bytes:
        """The control call: a `Call` in, a `Record` out when the stream has ended.

        Cancelling it aborts the request.
        """
        return encode(await self._run(decode_call(data)))

    async def _run(self, call: Call) -> Record:
        try:
            channel = await self._dialer.connect(call.address)
        except TcpNeeded:
            return NeedsTcp()
        except OSError as error:
            return _refusal(EngineDead(f"the replica cannot reach the ingress: {error}"))
        tally = channel.open(call)
        try:
            self._engine.submit(call.request, channel)
            return await tally.finished
        except RtpServeError as error:
            return _refusal(error)
        finally:
            channel.forget(call.request.request_id)
            self._engine.abort(call.request.request_id)

    async def served_model(self) -> ServedModel:
        return await self._engine.served_model()

    async def metrics_text(self) -> tuple[str, str]:
        """This replica's name and its figures in Prometheus text format."""
        return self._replica, await self._engine.metrics_text()

    async def check_health(self) -> None:
        """Serve replaces the replica when this raises."""
        await self._engine.check_health()

    async def __del__(self) -> None:
        """Serve awaits it when the replica has drained: end streams, free the model."""
        if self._close is not None:
            self._dialer.close()
            await asyncio.to_thread(self._engine.shutdown)
            self._close()


def _refusal(error: RtpServeError) -> Refused:
    param = error.param if isinstance(error, InvalidRequest) else None
    retry_after_s = error.retry_after_s if isinstance(error, Overloaded) else 1
    return Refused(error.code, error.message, param, retry_after_s)
