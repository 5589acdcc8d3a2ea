"""A prefill replica's attempts: each computes a prompt and tells the decode replica what is ready.

The engine's thread only hands over; everything else happens on the replica's event loop.
"""

import asyncio
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace

from deployments.channels.dialer import Dialer
from deployments.kv_transfer.outbound import OutboundChannel
from deployments.kv_transfer.wire import PrefillCall, PrefillEnded, PrefillLoad, Taken, pack_first
from deployments.master.names import PART
from rtp_serve.clock import Clock
from rtp_serve.disaggregation.lifecycle import (
    Bump,
    PrefillAction,
    Release,
    SendAccepted,
    SendFailed,
    SendFirstToken,
    SendReady,
    StopComputing,
    TransferLimits,
)
from rtp_serve.disaggregation.prefill_transfer import PrefillTransfer
from rtp_serve.disaggregation.protocol import (
    Accepted,
    Failed,
    Ready,
    Span,
    TransferCode,
    TransferKey,
)
from rtp_serve.disaggregation.transport.checksummed import ExportedBlocks, export_blocks
from rtp_serve.disaggregation.transport.slots import Slot, Slots
from rtp_serve.engine.async_engine import AsyncEngine
from rtp_serve.engine.request import FinishReason, SequenceDelta
from rtp_serve.errors import Overloaded, WrongLayout


class PrefillSide:
    """What one prefill replica computes for others."""

    def __init__(
        self,
        engine: AsyncEngine,
        dialer: Dialer[OutboundChannel],
        slots: Slots,
        layer_groups: int,
        clock: Clock,
    ) -> None:
        self._clock = clock
        self._engine = engine
        self._layer_groups = layer_groups
        self._dialer = dialer
        self._slots = slots
        self._attempts: dict[TransferKey, _Attempt] = {}

    @property
    def num_slots_used(self) -> int:
        """Prompts that are held for others, or will be."""
        return self._slots.num_used

    async def export(
        self, key: TransferKey, block_ids: tuple[int, ...], layers: Span
    ) -> ExportedBlocks | None:
        """The bytes of blocks that an attempt has published; None if they are not held any more.

        Raises WrongLayout if there are no such blocks.
        """
        memory = self._engine.memory
        if memory is None or key not in self._attempts:
            return None
        exported = await asyncio.to_thread(export_blocks, memory.parts, block_ids, layers)
        attempt = self._attempts.get(key)
        return exported if attempt is not None and not attempt.is_over else None

    async def run(self, call: PrefillCall) -> PrefillEnded:
        """One attempt, until the decode side has everything or it has come to nothing.

        Raises TcpNeeded or OSError if the decode replica cannot be reached, WrongLayout, and what
        `AsyncEngine.submit` raises; nothing was begun then. Cancelling it aborts.
        """
        memory = self._engine.memory
        if memory is None or memory.description.layout_digest != call.layout_digest:
            raise WrongLayout("this replica and the one that asks hold blocks in different ways")
        channel = await self._dialer.connect(call.address)
        slot = self._slots.allocate()
        if slot is None:
            raise Overloaded("as many prompts as there can be are held for others")
        attempt = _Attempt(
            self._engine, channel, slot, self._slots, call, self._layer_groups, self._clock
        )
        self._attempts[call.key] = attempt
        try:
            return await attempt.run()
        finally:
            attempt.end()
            del self._attempts[call.key]


class _Attempt:
    """Events of engine, channel and clock in; the lifecycle's actions out."""

    def __init__(
        self,
        engine: AsyncEngine,
        channel: OutboundChannel,
        slot: Slot,
        slots: Slots,
        call: PrefillCall,
        layer_groups: int,
        clock: Clock,
    ) -> None:
        self._clock = clock
        self.max_groups = layer_groups
        self._engine = engine
        self._channel = channel
        self._slots = slots
        self._slot = slot
        self._has_slot = True
        self._key = call.key
        self._loop = asyncio.get_running_loop()
        limits = TransferLimits(call.lease_s)
        now_s = self._loop.time()
        self._transfer = PrefillTransfer(call.key, now_s + call.timeout_s, limits, now_s)
        self._request = replace(call.request, request_id=_own_name(call))
        self._first: SequenceDelta | None = None
        self._num_told = 0
        self._last_layer_s = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self._over: asyncio.Future[None] = self._loop.create_future()

    @property
    def is_over(self) -> bool:
        return self._transfer.is_over

    async def run(self) -> PrefillEnded:
        self._engine.submit(self._request, self, self)
        stats = self._engine.stats
        self._channel.send(Taken(self._key, PrefillLoad(stats.token_s, stats.num_tokens_behind)))
        self._channel.speak(self._key, self)
        self._set_timer()
        await self._over
        code = self._transfer.code
        return PrefillEnded(self._transfer.state.name.lower(), code.value if code else None)

    def end(self) -> None:
        """However it came: nothing is held afterwards."""
        self._do(self._transfer.aborted(self._key))
        if self._has_slot:  # the engine refused, so nothing was published
            self._retire_slot()
        # What the engine was told of it last: blocks of a step under way are held till here too.
        self._engine.end_publication(self._request.request_id)
        self._channel.forget(self._key)
        if self._timer is not None:
            self._timer.cancel()

    # The engine's thread calls these two.

    def deliver(self, deltas: list[SequenceDelta]) -> None:
        self._hand_over(self._on_deltas, deltas)

    def ready(self, first: int, block_ids: Sequence[int], layers: range) -> None:
        self._last_layer_s = self._clock.monotonic()
        self._hand_over(self._on_ready, first, tuple(block_ids), layers)

    def _hand_over(self, take: Callable[..., None], *arguments: object) -> None:
        # RuntimeError: the loop closed with the replica, nobody is left to hear.
        with suppress(RuntimeError):
            self._loop.call_soon_threadsafe(take, *arguments)

    def _on_ready(self, first: int, block_ids: tuple[int, ...], layers: range) -> None:
        end = first + len(block_ids)
        if end > self._num_told:
            self._num_told = end
            self._do(self._transfer.got_blocks(first, block_ids))
        self._do(self._transfer.computed((first, end), (layers.start, layers.stop)))

    def _on_deltas(self, deltas: list[SequenceDelta]) -> None:
        (delta,) = deltas
        if delta.finish_reason in (FinishReason.ERROR, FinishReason.ABORT):
            self._do(self._transfer.engine_failed(TransferCode.PEER_FAILED))
            return
        self._first = delta
        self._do(self._transfer.first_token())

    # The channel calls these.

    def received(self, key: TransferKey) -> None:
        self._transfer.heard(self._loop.time())
        self._do(self._transfer.received(key))

    def aborted(self, key: TransferKey) -> None:
        self._do(self._transfer.aborted(key))

    def beat(self) -> None:
        self._transfer.heard(self._loop.time())

    def lose(self) -> None:
        self._do(self._transfer.lost())

    def _set_timer(self) -> None:
        """A lease that was renewed meanwhile sets the next one."""
        deadline_s = self._transfer.next_deadline_s
        if deadline_s is not None:
            self._timer = self._loop.call_at(deadline_s, self._tick)

    def _tick(self) -> None:
        self._do(self._transfer.tick(self._loop.time()))
        self._set_timer()

    def _do(self, actions: tuple[PrefillAction, ...]) -> None:
        for action in actions:
            self._act(action)
        if self._transfer.is_over and not self._over.done():
            self._over.set_result(None)

    def _act(self, action: PrefillAction) -> None:
        send = self._channel.send
        match action:
            case SendAccepted(key, first_block, block_ids):
                slot = self._slot
                send(Accepted(key, first_block, block_ids, slot.number, slot.value))
            case SendReady(key, blocks, layers):
                send(Ready(key, blocks, layers))
            case SendFirstToken(key):
                assert self._first is not None, "there is a first token"
                send(pack_first(key, self._first, self._last_layer_s))
            case SendFailed(key, code):
                send(Failed(key, code))
            case StopComputing():
                self._engine.abort(self._request.request_id)
            case Bump():
                self._retire_slot()
            case Release():
                self._engine.end_publication(self._request.request_id)

    def _retire_slot(self) -> None:
        assert self._has_slot, "a slot is taken back once"
        self._has_slot = False
        self._slots.retire(self._slot)


def _own_name(call: PrefillCall) -> str:
    """Of the request here: another attempt at it may not be over. It begins with the name under
    which the Master knows the request."""
    return f"{call.request.request_id}{PART}{call.key.transfer}#{call.key.epoch}"
