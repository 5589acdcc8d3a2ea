"""An engine replica's dealings with others: prompts computed for them, and by them."""

import asyncio
import itertools
import logging
import secrets

import ray
from ray import serve

from deployments.channels.door import Door
from deployments.kv_transfer.copy_thread import CopyThread
from deployments.kv_transfer.decode_side import Deliver, Prefilling, prefill_elsewhere
from deployments.kv_transfer.figures import TransferFigures
from deployments.kv_transfer.inbound import KvListener
from deployments.kv_transfer.options import ExchangeOptions
from deployments.kv_transfer.outbound import kv_dialer
from deployments.kv_transfer.peers import Peers
from deployments.kv_transfer.predictions import Predictions
from deployments.kv_transfer.prefill_side import PrefillSide
from deployments.kv_transfer.shared_slots import make_slots
from deployments.kv_transfer.wire import PrefillCall, PrefillEnded
from deployments.role_pool import RolePool
from rtp_serve.clock import WallClock
from rtp_serve.config.disaggregation import DECODE_REPLICA, PREFILL_REPLICA
from rtp_serve.disaggregation.breaker import Breaker, BreakerLimits
from rtp_serve.disaggregation.choice import ChoicePolicy, ChoiceReason
from rtp_serve.disaggregation.lifecycle import TransferLimits
from rtp_serve.disaggregation.memory import KVMemory
from rtp_serve.disaggregation.protocol import Span, TransferKey
from rtp_serve.disaggregation.transport.checksummed import ExportedBlocks
from rtp_serve.engine.async_engine import AsyncEngine
from rtp_serve.engine.request import Request
from rtp_serve.native.shared_file import forget_name
from rtp_serve.routing.types import Role

logger = logging.getLogger("ray.serve")


class KvExchange:
    """Both sides of one replica; for its event loop."""

    def __init__(
        self, options: ExchangeOptions, engine: AsyncEngine, memory: KVMemory, replica: str
    ) -> None:
        self._replica = replica
        node_id = ray.get_runtime_context().get_node_id()
        heartbeat_s = TransferLimits(options.transfer.lease_s).heartbeat_s
        slots, slots_descriptor = make_slots(f"{secrets.token_hex(8)}-slots")
        self._published = memory.published(slots_descriptor)
        self._dialer = kv_dialer(node_id, replica, self._published, heartbeat_s)
        self._prefill_side = PrefillSide(
            engine, self._dialer, slots, options.transfer.layer_groups, WallClock()
        )
        self.figures = TransferFigures()
        prefill = _prefill_pool(options, replica) if options.asks else None
        self._copier = CopyThread(memory, prefill, self.figures)
        self._numbers = itertools.count(1)
        self._loop = asyncio.get_running_loop()
        self._shared: Prefilling | None = None
        self._listener: KvListener | None = None
        if prefill is not None:
            door = Door(
                "rtp-serve-kv", node_id, ray.util.get_node_ip_address(), options.tcp_port_range
            )
            self._listener = KvListener(door, heartbeat_s, self._peer_left)
            peers = Peers(prefill, Breaker(BreakerLimits()))
            self._shared = Prefilling(
                engine,
                memory.description,
                prefill,
                self._listener,
                self._copier,
                options.transfer,
                options.is_exact,
                self.figures,
                Predictions(engine, ChoicePolicy(), peers),
                peers,
                WallClock(),
            )

        self.figures.watch(self._num_transfers, lambda: self._prefill_side.num_slots_used)

    def _peer_left(self, replica: str) -> None:
        """Its memory may be that of a process that has ended."""
        self._copier.forget_peer(replica)
        if self._shared is not None:
            self._shared.predictions.lost(replica)

    def _num_transfers(self) -> int:
        return self._listener.num_transfers if self._listener is not None else 0

    async def start(self) -> None:
        if self._listener is not None:
            await self._listener.start()

    def is_for_others(self, request: Request, preferred: str = "") -> bool:
        """Whether a prefill replica, `preferred` if it can be, is to compute the prompt."""
        if self._shared is None:
            return False
        if can_be_moved(request):
            obstacle = self._shared.peers.obstacle(self._loop.time())
        else:
            obstacle = ChoiceReason.UNSUPPORTED
        if self._shared.config.choice == "always" and obstacle is None:
            return True
        choice = self._shared.predictions.choose(request, obstacle, preferred)
        self.figures.chose(choice.reason)
        return not choice.is_local

    async def bring(
        self, request: Request, deliver: Deliver, preferred: str = ""
    ) -> Request | None:
        """See `prefill_elsewhere`."""
        assert self._shared is not None, "there are no prefill replicas"
        name = f"{self._replica}-{next(self._numbers)}"
        return await prefill_elsewhere(self._shared, name, request, deliver, preferred)

    async def prefill(self, call: PrefillCall) -> PrefillEnded:
        """See `PrefillSide.run`."""
        return await self._prefill_side.run(call)

    async def export(
        self, key: TransferKey, block_ids: tuple[int, ...], layers: Span
    ) -> ExportedBlocks | None:
        """See `PrefillSide.export`."""
        return await self._prefill_side.export(key, block_ids, layers)

    async def close(self) -> None:
        """Others find that this replica is gone."""
        if self._listener is not None:
            self._listener.close()
        self._dialer.close()
        await asyncio.to_thread(self._copier.close)
        for file in self._published.files:
            forget_name(file)


def _prefill_pool(options: ExchangeOptions, replica: str) -> RolePool:
    """For this replica, which asks others; itself it asks by computing."""
    others = [serve.get_deployment_handle(DECODE_REPLICA)] if options.can_switch else []
    prefill = serve.get_deployment_handle(PREFILL_REPLICA)
    return RolePool(Role.PREFILL, prefill, others, without=replica)


def can_be_moved(request: Request) -> bool:
    """One sequence, from its beginning, of which nobody asks what no cache has."""
    sampling = request.sampling
    return sampling.n == 1 and not request.emitted and sampling.prompt_logprobs is None
