"""EngineReplica: one engine as a Serve replica.

Calls come by Serve's handles, tokens leave by the token channel. The engine steps on its own thread
without the GIL, so this process's event loops answer health checks through the longest step.
"""

import asyncio
import gc
import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Protocol

import ray
from ray import serve
from ray.serve.schema import ReplicaRank

from deployments.autoscaling_record import SWITCHED, read_num_switched
from deployments.channels.dialer import TcpNeeded
from deployments.deferred_torch import defer_unused_torch
from deployments.kv_transfer import wire as kv_wire
from deployments.kv_transfer.options import ExchangeOptions
from deployments.master.joining import RoutingOptions, start_link
from deployments.master.link import MasterLink
from deployments.metrics import RaySink
from deployments.ranks import BundleStarter
from deployments.replica_role import ReplicaRole, RoleOptions
from deployments.role_told import routing_stats
from deployments.store_client import connect_store
from deployments.token_stream.dialer import TokenChannel, token_dialer
from deployments.token_stream.streams import StreamTally
from deployments.token_stream.wire import Call, NeedsTcp, Record, Refused, decode_call, encode
from deployments.warm_processes import tell_template
from rtp_serve.autoscaling.recorder import LoadRecorder
from rtp_serve.clock import Clock, WallClock
from rtp_serve.config.autoscaling import DEFAULT_TARGETS
from rtp_serve.config.engine import EngineConfig, ModelSource
from rtp_serve.config.routing import SloClass
from rtp_serve.config.user_config import parse_user_config
from rtp_serve.disaggregation.protocol import Span, TransferKey
from rtp_serve.disaggregation.transport.checksummed import ExportedBlocks
from rtp_serve.engine.async_engine import AsyncEngine
from rtp_serve.engine.cache_answers import CacheStats, Pinned, Trimmed
from rtp_serve.engine.client import Reloaded, ServedModel
from rtp_serve.errors import (
    ConfigError,
    EngineDead,
    InvalidRequest,
    Overloaded,
    ReloadFailed,
    RtpServeError,
)
from rtp_serve.observability.logging import configure_logging
from rtp_serve.observability.metrics import MetricsSink
from rtp_serve.routing.types import Role

if TYPE_CHECKING:
    from deployments.kv_transfer.exchange import KvExchange

_MIXED = RoleOptions(Role.MIXED)

logger = logging.getLogger(__name__)


class BuildEngine(Protocol):
    """`rtp_serve.build.build_engine`, or a stand-in."""

    def __call__(self, config: EngineConfig, *, clock: Clock, sink: MetricsSink) -> AsyncEngine: ...


def build_real_engine(config: EngineConfig, *, clock: Clock, sink: MetricsSink) -> AsyncEngine:
    """With the KV store of this Ray node and the ranks of this replica's placement group, where the
    configuration has them."""
    defer_unused_torch()
    # Imported here: the ingress and the builder import this module and must stay free of torch.
    from rtp_serve.build import build_engine

    num_ranks = config.parallel.world_size
    starter = BundleStarter(num_ranks) if num_ranks > 1 else None
    return build_engine(config, clock=clock, sink=sink, open_store=connect_store, starter=starter)


class EngineReplica:
    """Runs requests for ingresses. Its methods are called through Serve handles."""

    def __init__(
        self,
        config: EngineConfig,
        build: BuildEngine = build_real_engine,
        exchange: ExchangeOptions | None = None,
        routing: RoutingOptions | None = None,
        targets: SloClass = DEFAULT_TARGETS,
        role: RoleOptions = _MIXED,
    ) -> None:
        """Loads nothing: `reconfigure`, which Serve calls next, says which model. With `exchange`
        prompts are computed for other replicas, or by them; with `routing` a Master is told of
        this one. `targets` are autoscaling's."""
        configure_logging()
        self._config = config
        self._build = build
        self._targets = targets
        context = serve.get_replica_context()
        self._replica = context.replica_id.unique_id
        tell_template(context.app_name, context.deployment)
        self._dialer = token_dialer(ray.get_runtime_context().get_node_id(), self._replica)
        self._sink = RaySink()
        self._exchange_options = exchange
        self._exchange: KvExchange | None = None
        self._routing = routing
        self._link: MasterLink | None = None
        self._started: AsyncEngine | None = None
        self._source = config.source
        self._loading: set[asyncio.Task[None]] = set()
        self._clock = WallClock()
        self._recorder = LoadRecorder(targets, 0)
        self._role = ReplicaRole(
            role,
            self._replica,
            lambda: read_num_switched(context.app_name, context.deployment, self._clock.wall()),
            self._role_changed,
        )

    @property
    def _engine(self) -> AsyncEngine:
        if self._started is None:
            raise EngineDead("no model: the deployment's user_config must name one")
        return self._started

    async def reconfigure(
        self, user_config: Mapping[str, Any], rank: ReplicaRank | None = None
    ) -> None:
        """The deployment's `user_config`: a UserConfig, by default the model of the engine's own
        configuration. Serve also calls it when the replica's `rank` has changed.

        The first model is loaded before the replica serves. A later one is loaded beside what runs,
        and this returns at once: Serve gives a replica nothing to do until it does, and stops one
        that raises. What goes wrong then is logged, and the weights that run go on.
        """
        number = rank.rank if rank is not None else 0
        if self._started is None:
            config = parse_user_config(user_config)
            self._role.configure(config.switched, number)
            await self._start(config.source)
            return
        try:
            config = parse_user_config(user_config)
            self._role.configure(config.switched, number)
        except ConfigError as error:
            logger.error("the new user_config is not in force: %s", error.message)
            return
        if config.source != self._source:
            self._source = config.source
            loading = asyncio.create_task(self._load(config.source))
            self._loading.add(loading)
            loading.add_done_callback(self._loading.discard)

    async def _start(self, source: ModelSource) -> None:
        """Load the model, in a thread: Serve keeps asking this process how it is."""
        self._source = source
        config = self._config.model_copy(
            update={
                "model": source.model,
                "revision": source.revision,
                "served_model_name": self._config.model_name,
            }
        )
        self._started = await asyncio.to_thread(
            self._build, config, clock=WallClock(), sink=self._sink
        )
        self._recorder = self._new_recorder(self._started)
        if self._exchange_options is not None:
            self._exchange = await self._joined(self._exchange_options, self._started)
        if self._routing is not None:
            self._link = await start_link(
                self._routing, self._started, self._replica, lambda: self._role.current
            )
        await self._role.start()
        # What is here now stays: a collection that looks at all of it would hold up a step.
        gc.collect()
        gc.freeze()

    def _new_recorder(self, engine: AsyncEngine) -> LoadRecorder:
        return LoadRecorder(self._targets, engine.stats.num_blocks * engine.block_size)

    def _role_changed(self) -> None:
        """What it has counted so far was of the other role's work."""
        if self._started is not None:
            self._recorder = self._new_recorder(self._started)

    async def record_routing_stats(self) -> dict[str, str]:
        """For routers everywhere, by way of Serve's controller."""
        return routing_stats(self._role.current) if self._role.options.can_switch else {}

    async def _joined(self, options: ExchangeOptions, engine: AsyncEngine) -> "KvExchange | None":
        """None where the engine's blocks cannot be seen from here, as with ranks on other nodes."""
        if engine.memory is None:
            logger.warning("prompts are not exchanged: the engine's ranks are on several nodes")
            return None
        # Imported here: most replicas exchange nothing.
        from deployments.kv_transfer.exchange import KvExchange

        exchange = KvExchange(options, engine, engine.memory, self._replica)
        await exchange.start()
        return exchange

    async def _load(self, source: ModelSource) -> None:
        try:
            reloaded = await asyncio.to_thread(self._engine.load, source)
        except RtpServeError as error:
            logger.error("the new user_config is not in force: %s", error.message)
        else:
            logger.warning("new requests run on %s, %s", source.model, reloaded.fingerprint)

    async def reload(self) -> Reloaded:
        """Read the model's weights again; see EngineClient. Raises ReloadFailed."""
        try:
            reloaded = await asyncio.to_thread(self._engine.load)
        except RtpServeError as error:
            raise ReloadFailed(f"replica {self._replica}: {error.message}") from error
        return replace(reloaded, replica=self._replica)

    async def run(self, data: bytes, *, replica: str = "") -> bytes:
        """The control call: a `Call` in, a `Record` out when the stream has ended.

        Cancelling it aborts the request. `replica` is for the router.
        """
        return encode(await self._run(decode_call(data)))

    async def _run(self, call: Call) -> Record:
        try:
            channel = await self._dialer.connect(call.address)
        except TcpNeeded:
            return NeedsTcp()
        except OSError as error:
            return _refusal(EngineDead(f"the replica cannot reach the ingress: {error}"))
        exchange = self._exchange
        if exchange is not None and exchange.is_for_others(call.request, call.prefill):
            return await self._run_with(exchange, call, channel)
        try:
            self._engine.submit(call.request, channel)
        except RtpServeError as error:
            return _refusal(error)
        # The channel hears of tokens on this loop, hence later than this.
        tally = channel.open(call)
        self._count(call, tally)
        try:
            return await tally.finished
        except RtpServeError as error:
            return _refusal(error)
        finally:
            self._end(call, tally)
            channel.forget(call.request.request_id)
            self._engine.abort(call.request.request_id)

    async def _run_with(self, exchange: "KvExchange", call: Call, channel: TokenChannel) -> Record:
        """The same, with the prompt computed by another replica."""
        request_id = call.request.request_id
        try:
            self._engine.check(call.request)
        except RtpServeError as error:
            return _refusal(error)
        tally = channel.open(call)
        self._count(call, tally)
        bringing = asyncio.create_task(
            exchange.bring(call.request, lambda delta: channel.deliver([delta]), call.prefill)
        )
        try:
            await asyncio.wait((bringing, tally.finished), return_when=asyncio.FIRST_COMPLETED)
            if bringing.done():
                rest = bringing.result()
                if rest is not None:
                    self._engine.submit(rest, channel)
            return await tally.finished
        except RtpServeError as error:
            return _refusal(error)
        finally:
            self._end(call, tally)
            channel.forget(request_id)
            self._engine.abort(request_id)
            if bringing.done():
                self._engine.end_reception(request_id)
            else:  # it gives its blocks back itself, when nobody copies into them
                bringing.cancel()

    def _count(self, call: Call, tally: StreamTally) -> None:
        """Let autoscaling know of a stream: that it came, and when it has its first token."""
        request_id = call.request.request_id
        self._recorder.arrived(
            request_id, len(call.request.prompt_token_ids), self._clock.monotonic()
        )
        tally.on_first_token = lambda: self._recorder.first_token(
            request_id, self._clock.monotonic()
        )

    def _end(self, call: Call, tally: StreamTally) -> None:
        self._recorder.ended(call.request.request_id, tally.num_tokens, self._clock.monotonic())

    async def record_autoscaling_stats(self) -> dict[str, float]:
        """For the policy in Serve's controller."""
        load = self._recorder.load(self._clock.monotonic()).floats()
        return load | {SWITCHED: float(self._role.is_switched)}

    async def prefill(self, data: bytes, *, replica: str = "") -> bytes:
        """A `PrefillCall` in, a `PrefillRecord` out when the other replica has the prompt's keys
        and values, or the attempt has ended. Cancelling it aborts. `replica` is for the router."""
        call = kv_wire.decode_call(data)
        if self._exchange is None:
            return kv_wire.encode(Refused(EngineDead.code, "this replica computes for no other"))
        request_id, now = f"prefill {call.key}", self._clock.monotonic()
        self._recorder.arrived(request_id, len(call.request.prompt_token_ids), now)
        try:
            record = kv_wire.encode(await self._exchange.prefill(call))
            self._recorder.first_token(request_id, self._clock.monotonic())
            return record
        except TcpNeeded:
            return kv_wire.encode(NeedsTcp())
        except OSError as error:
            reason = f"the prefill replica cannot reach the decode replica: {error}"
            return kv_wire.encode(_refusal(EngineDead(reason)))
        except RtpServeError as error:
            return kv_wire.encode(_refusal(error))
        finally:
            self._recorder.ended(request_id, 1, self._clock.monotonic())

    async def export_blocks(
        self, key: TransferKey, block_ids: tuple[int, ...], layers: Span, *, replica: str
    ) -> ExportedBlocks | None:
        """Bytes of blocks that `replica` has published; None if it is not this one, or not any
        more. Big answers go through Ray's object store."""
        if self._exchange is None or replica != self._replica:
            return None
        return await self._exchange.export(key, block_ids, layers)

    async def served_model(self) -> ServedModel:
        return await self._engine.served_model()

    async def cache_stats(self) -> CacheStats:
        """See EngineClient."""
        (stats,) = await self._engine.cache_stats()
        return replace(stats, replica=self._replica)

    async def trim_cache(self, replicas: frozenset[str], num_bytes: int) -> Trimmed | None:
        """See EngineClient; None if this is none of `replicas`, one of each store."""
        if self._replica not in replicas:
            return None
        (trimmed,) = await self._engine.trim_cache(num_bytes)
        return trimmed

    async def pin_prefix(
        self, replicas: frozenset[str], token_ids: Sequence[int], cache_salt: str, ttl_s: float
    ) -> Pinned | None:
        """See EngineClient; None if this is none of `replicas`, one of each store."""
        if self._replica not in replicas:
            return None
        (pinned,) = await self._engine.pin_prefix(token_ids, cache_salt, ttl_s)
        return pinned

    async def metrics_text(self) -> tuple[str, str]:
        """This replica's name and its figures in Prometheus text format."""
        text = await self._engine.metrics_text() + self._role.render()
        if self._exchange is not None:
            text += self._exchange.figures.render()
        return self._replica, text

    async def check_health(self) -> None:
        """Serve replaces the replica when this raises."""
        await self._engine.check_health()

    async def __del__(self) -> None:
        """Serve awaits it when the replica has drained: end streams, free the model."""
        self._role.close()
        if self._link is not None:
            await self._link.close()
        self._dialer.close()
        if self._exchange is not None:
            await self._exchange.close()
        if self._started is not None:
            await asyncio.to_thread(self._started.shutdown)
        self._sink.close()


def _refusal(error: RtpServeError) -> Refused:
    param = error.param if isinstance(error, InvalidRequest) else None
    retry_after_s = error.retry_after_s if isinstance(error, Overloaded) else 1
    return Refused(error.code, error.message, param, retry_after_s)
