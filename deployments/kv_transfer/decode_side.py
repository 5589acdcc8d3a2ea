"""A decode replica's transfers: each has a prompt computed elsewhere and brings what comes of it.

    reserve ─► ask ─► copy while it is computed ─► deposit ─► the rest is generated here
                └─ the first token goes to the client as soon as it is there

Whatever fails costs time: what has come is used, and what has not is computed by another prefill
replica or here.
"""

import asyncio
import logging
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace

from ray.exceptions import RayError
from ray.serve.exceptions import RayServeException

from deployments.channels.framing import WireError
from deployments.kv_transfer.copy_thread import CopyThread
from deployments.kv_transfer.figures import TransferFigures
from deployments.kv_transfer.inbound import InboundChannel, Keyed, KvListener
from deployments.kv_transfer.peers import ANYBODY, Peers
from deployments.kv_transfer.predictions import Predictions
from deployments.kv_transfer.wire import (
    FirstToken,
    PrefillCall,
    PrefillEnded,
    Taken,
    decode_record,
    encode,
    unpack_first,
)
from deployments.role_pool import RolePool
from deployments.token_stream.wire import NeedsTcp, Refused
from rtp_serve.clock import Clock
from rtp_serve.config.disaggregation import TransferConfig
from rtp_serve.disaggregation.decode_transfer import DecodeTransfer
from rtp_serve.disaggregation.lifecycle import (
    Ask,
    Copy,
    DecodeAction,
    DecodeState,
    Deposit,
    Forward,
    GiveUp,
    Release,
    SendAbort,
    SendReceived,
    TransferLimits,
)
from rtp_serve.disaggregation.protocol import (
    Abort,
    Accepted,
    Failed,
    MemoryDescriptor,
    Ready,
    Received,
    TransferCode,
    TransferKey,
)
from rtp_serve.disaggregation.transport.slots import Slot
from rtp_serve.engine.async_engine import AsyncEngine
from rtp_serve.engine.receiving import Reserved
from rtp_serve.engine.request import (
    FinishReason,
    Request,
    SequenceDelta,
    first_token_request,
)
from rtp_serve.engine.request_check import max_output_tokens
from rtp_serve.errors import ModelChanged, WrongLayout

logger = logging.getLogger("ray.serve")

Deliver = Callable[[SequenceDelta], None]

_REFUSALS = {
    ModelChanged.code: TransferCode.OTHER_WEIGHTS,
    WrongLayout.code: TransferCode.WRONG_LAYOUT,
}
"""What an error that a prefill replica refuses with is to the transfer."""


@dataclass(frozen=True, slots=True)
class Prefilling:
    """What all transfers of a decode replica share."""

    engine: AsyncEngine
    memory: MemoryDescriptor
    """This replica's own."""

    prefill: RolePool
    """The prefill replicas."""

    listener: KvListener
    copier: CopyThread
    config: TransferConfig
    is_exact: bool
    """Whether prefill replicas have this one's arithmetic; else they have other ranks, the same
    weights, and greedy tokens are equal in float32."""

    figures: TransferFigures
    predictions: Predictions
    peers: Peers
    clock: Clock
    """For what is measured; another process of this node has the same."""

    @property
    def limits(self) -> TransferLimits:
        return TransferLimits(self.config.lease_s, self.config.max_attempts)


async def prefill_elsewhere(
    shared: Prefilling, name: str, request: Request, deliver: Deliver, preferred: str = ""
) -> Request | None:
    """Have a prompt computed by a prefill replica, `preferred` if it can be, and its first token
    delivered.

    Returns what is still to be run here: with the first token, or without if there was none; None
    if the first token was the last. Cancelling it gives everything back. Raises what
    `AsyncEngine.receive` raises.
    """
    transfer = _Transfer(shared, name, request, deliver, preferred)
    num_tokens = len(request.prompt_token_ids)
    shared.listener.listen(name, transfer)
    shared.predictions.begun(num_tokens)
    try:
        return await transfer.run()
    finally:
        shared.predictions.ended(num_tokens)
        transfer.close()
        shared.listener.forget(name)


class _Transfer:
    """Events of engine, channels, copier, calls and clock in; the lifecycle's actions out."""

    def __init__(
        self,
        shared: Prefilling,
        name: str,
        request: Request,
        deliver: Deliver,
        preferred: str,
    ) -> None:
        self._shared = shared
        self._preferred = preferred
        self._request = request
        self._deliver = deliver
        self._loop = asyncio.get_running_loop()
        self._started_s = self._loop.time()
        self._transfer = DecodeTransfer(
            name,
            shared.memory.num_layers,
            self._started_s + shared.config.timeout_s,
            shared.limits,
        )
        self._channels: dict[TransferKey, InboundChannel] = {}
        self._calls: set[asyncio.Task[None]] = set()
        self._num_tokens = len(request.prompt_token_ids)
        self._peer: str | None = None
        self._tried: set[str] = set()
        self._first: SequenceDelta | None = None
        self._began_s = shared.clock.monotonic()
        self._last_layer_s = 0.0
        self._copied_s = 0.0
        self._num_present = 0
        self._fingerprint = self._wanted = ""
        self._is_handed_over = False
        self._timer: asyncio.TimerHandle | None = None
        self._over: asyncio.Future[None] = self._loop.create_future()

    async def run(self) -> Request | None:
        self._shared.engine.receive(self._request, self)
        self._set_timer()
        await self._over
        self._is_handed_over = True
        if not self._transfer.has_first_token:
            return self._request
        assert self._first is not None, "it was forwarded"
        if self._first.finish_reason is not None:
            return None
        return replace(
            self._request, emitted=(self._first.token_ids,), fingerprint=self._fingerprint
        )

    def close(self) -> None:
        """Give back what is held, once nobody copies into it."""
        self._do(self._transfer.cancel())
        self._leave_peer()
        if self._timer is not None:
            self._timer.cancel()
        for call in self._calls:
            call.cancel()
        for key in self._channels:
            self._shared.copier.forget(key)
        if self._transfer.is_over and not self._is_handed_over:
            # It may wait for room still, or be deposited for nobody. Where a copy is under way, its
            # end gives back.
            self._shared.engine.end_reception(self._request.request_id)

    # The engine's thread calls this.

    def reserved(self, blocks: Reserved) -> None:
        # RuntimeError: the loop closed with the replica, nobody is left to hear.
        with suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._on_reserved, blocks)

    def _on_reserved(self, blocks: Reserved) -> None:
        now_s = self._loop.time()
        self._shared.figures.reserved(self._shared.clock.monotonic() - self._began_s)
        self._num_present = blocks.num_present
        self._fingerprint = blocks.fingerprint
        self._wanted = blocks.fingerprint if self._shared.is_exact else blocks.content
        self._do(self._transfer.reserved(blocks.num_present, blocks.block_ids, now_s))

    # Channels call these.

    def wants(self, key: TransferKey) -> bool:
        return key == self._transfer.key

    def tell(self, channel: InboundChannel, message: Keyed) -> None:
        self._channels[message.key] = channel
        now_s = self._loop.time()
        match message:
            case Taken(key, load):
                self._shared.predictions.heard(channel.hello.replica, load)
                if key == self._transfer.key:
                    self._meet(channel.hello.replica)
                self._transfer.heard(key, now_s)
            case Accepted(key, first_block, block_ids, slot, slot_value):
                hello = channel.hello
                self._shared.copier.publish(
                    key, hello.replica, hello.memory, Slot(slot, slot_value)
                )
                self._do(self._transfer.accepted(key, first_block, block_ids, now_s))
            case Ready(key, blocks, layers):
                self._do(self._transfer.ready(key, blocks, layers, now_s))
            case FirstToken(key):
                self._take_first(channel, message)
                self._do(self._transfer.first_token(key, now_s))
            case Failed(key, code):
                self._do(self._transfer.failed(key, code, now_s))

    def beat(self, key: TransferKey) -> None:
        self._transfer.heard(key, self._loop.time())

    def lose(self, key: TransferKey) -> None:
        self._do(self._transfer.lost(key, self._loop.time()))

    def _take_first(self, channel: InboundChannel, message: FirstToken) -> None:
        """The last one only if the whole request says so. It counts once it is forwarded: one of an
        attempt that has failed meanwhile is not."""
        if self._transfer.has_first_token:
            return
        now_s = self._shared.clock.monotonic()
        self._last_layer_s = message.last_layer_s if channel.is_local else now_s
        delta = unpack_first(self._request.request_id, message)
        limit = max_output_tokens(self._request, self._shared.engine.model)
        if delta.finish_reason is FinishReason.LENGTH and limit > 1:
            delta = replace(delta, finish_reason=None)
        self._first = replace(delta, fingerprint=self._fingerprint)

    def _copied(self, copy: Copy, code: TransferCode | None) -> None:
        self._copied_s = self._shared.clock.monotonic()
        self._do(self._transfer.copied(copy, code, self._loop.time()))

    def _tick(self) -> None:
        self._timer = None
        self._do(self._transfer.tick(self._loop.time()))

    def _do(self, actions: tuple[DecodeAction, ...]) -> None:
        for action in actions:
            self._act(action)
        if self._transfer.is_over and not self._over.done():
            self._over.set_result(None)
        self._set_timer()

    def _set_timer(self) -> None:
        """It may be too early, after which the next one is set, but never too late."""
        deadline_s = self._transfer.next_deadline_s
        if deadline_s is None or (self._timer is not None and self._timer.when() <= deadline_s):
            return
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._loop.call_at(deadline_s, self._tick)

    def _act(self, action: DecodeAction) -> None:
        shared, request_id = self._shared, self._request.request_id
        match action:
            case Ask(key, num_blocks_present):
                self._begin_attempt(key, num_blocks_present)
            case Copy():
                shared.copier.copy(action, self._copied)
            case Forward():
                assert self._first is not None, "there is a first token"
                self._deliver(self._first)
                if self._first.finish_reason is not None:
                    self._do(self._transfer.cancel())
            case SendReceived(key):
                self._say(Received(key))
            case SendAbort(key):
                self._say(Abort(key))
            case Deposit(num_blocks):
                shared.engine.deposit(request_id, self._num_present + num_blocks)
                if self._transfer.state is DecodeState.DONE:
                    self._note()
            case Release():
                shared.engine.end_reception(request_id)
            case GiveUp(code):
                shared.figures.gave_up(code)
                self._blame_peer()

    def _begin_attempt(self, key: TransferKey, num_blocks_present: int) -> None:
        self._blame_peer()
        peer = self._shared.peers.choose(self._tried, self._loop.time(), self._preferred)
        if peer is None:
            self._do(self._transfer.no_peer(key))
            return
        self._meet(peer)
        call = asyncio.create_task(self._call(key, num_blocks_present, peer))
        self._calls.add(call)
        call.add_done_callback(self._calls.discard)

    def _meet(self, peer: str) -> None:
        """This one has the prompt, or will be asked for it."""
        if peer != self._peer:
            self._leave_peer()
            self._peer = peer
            self._tried.add(peer)
            self._shared.peers.begun(peer, self._num_tokens)

    def _leave_peer(self) -> None:
        if self._peer is not None:
            self._shared.peers.ended(self._peer, self._num_tokens)
            self._peer = None

    def _blame_peer(self) -> None:
        """The attempt has failed, if there was one."""
        if self._peer is not None:
            self._shared.peers.failed(self._peer, self._loop.time())
            self._leave_peer()

    def _say(self, message: Received | Abort) -> None:
        channel = self._channels.get(message.key)
        if channel is not None:
            channel.send(message)

    def _note(self) -> None:
        now_s = self._shared.clock.monotonic()
        is_known = self._transfer.has_first_token
        exposed_s = max(0.0, self._copied_s - self._last_layer_s) if is_known else 0.0
        self._shared.figures.brought(now_s - self._began_s, exposed_s)
        self._shared.predictions.brought(exposed_s)
        if self._peer is not None:
            self._shared.peers.succeeded(self._peer)
            self._leave_peer()

    async def _call(self, key: TransferKey, num_blocks_present: int, peer: str) -> None:
        """Hold the control call of an attempt open; whatever ends it badly fails the attempt."""
        try:
            record = await self._ask(key, num_blocks_present, peer)
            if isinstance(record, NeedsTcp):
                await self._shared.listener.door.open_tcp()
                record = await self._ask(key, num_blocks_present, peer)
        except (RayError, RayServeException, WireError, OSError) as error:
            logger.info("the prefill replica failed: %s", type(error).__name__)
            self._do(self._transfer.lost(key, self._loop.time()))
            return
        match record:
            case Refused(code, message):
                logger.info("the prefill replica refused: %s: %s", code, message)
                refused = _REFUSALS.get(code, TransferCode.PEER_REFUSED)
                self._do(self._transfer.failed(key, refused, self._loop.time()))
            case NeedsTcp():
                self._do(self._transfer.lost(key, self._loop.time()))
            case PrefillEnded(_, code) if code is not None:
                self._do(self._transfer.failed(key, TransferCode(code), self._loop.time()))

    async def _ask(
        self, key: TransferKey, num_blocks_present: int, peer: str
    ) -> PrefillEnded | NeedsTcp | Refused:
        config, now_s = self._shared.config, self._loop.time()
        call = PrefillCall(
            self._shared.listener.door.address,
            key,
            first_token_request(replace(self._request, fingerprint=self._wanted)),
            num_blocks_present,
            self._shared.memory.layout_digest,
            max(0.0, self._started_s + config.timeout_s - now_s),
            config.lease_s,
        )
        named = {} if peer == ANYBODY else {"replica": peer}
        handle = self._shared.prefill.handle(peer)
        response = handle.prefill.remote(encode(call), **named)
        try:
            return decode_record(await response)
        except asyncio.CancelledError:
            response.cancel()
            raise
