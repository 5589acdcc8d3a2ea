"""Copies blocks that prefill replicas publish into this replica's own, one after the other."""

import asyncio
import logging
import threading
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

from deployments.kv_transfer.figures import TransferFigures
from deployments.kv_transfer.remote_blocks import RemoteBlocks
from deployments.role_pool import RolePool
from rtp_serve.disaggregation.lifecycle import Copy
from rtp_serve.disaggregation.memory import KVMemory
from rtp_serve.disaggregation.protocol import MemoryDescriptor, TransferCode, TransferKey
from rtp_serve.disaggregation.transport.base import BlockSource, Peer
from rtp_serve.disaggregation.transport.shared_memory import SharedMemoryPeer
from rtp_serve.disaggregation.transport.slots import Slot
from rtp_serve.errors import SharedMemoryUnavailable, WrongLayout

logger = logging.getLogger("ray.serve")

Copied = Callable[[Copy, TransferCode | None], None]


@dataclass(frozen=True, slots=True)
class _Job:
    copy: Copy
    source: BlockSource | None
    """None of an attempt that was forgotten meanwhile."""

    copied: Copied


class CopyThread:
    """The thread, and the memories that it copies from. Methods are for one event loop."""

    def __init__(
        self, memory: KVMemory, prefill: RolePool | None, figures: TransferFigures
    ) -> None:
        """`prefill` are the replicas that publish; None where there are none."""
        self._memory = memory
        self._prefill = prefill
        self._figures = figures
        self._loop = asyncio.get_running_loop()
        self._peers: dict[str, Peer | None] = {}
        self._sources: dict[TransferKey, BlockSource] = {}
        self._jobs: deque[_Job] = deque()
        self._changed = threading.Condition()
        self._is_closed = False
        self._thread = threading.Thread(target=self._run, name="kv-copy", daemon=True)
        self._thread.start()

    @property
    def layer_bytes(self) -> int:
        """Of one layer of one block, keys and values, of all heads."""
        memory = self._memory.description
        return 2 * memory.num_kv_heads * memory.tile_bytes

    def publish(self, key: TransferKey, replica: str, memory: MemoryDescriptor, slot: Slot) -> None:
        """An attempt's blocks are in this memory, as long as the slot says so."""
        if key not in self._sources:
            self._sources[key] = self._source(key, replica, memory, slot)

    def forget(self, key: TransferKey) -> None:
        """Nothing more is copied of this attempt."""
        self._sources.pop(key, None)

    def forget_peer(self, replica: str) -> None:
        """It is gone; copies under way go on, for its memory stays until they end."""
        peer = self._peers.pop(replica, None)
        if peer is not None:
            peer.close()

    def copy(self, copy: Copy, copied: Copied) -> None:
        """Begin; `copied` is called on the loop when nothing more will be written."""
        with self._changed:
            self._jobs.append(_Job(copy, self._sources.get(copy.key), copied))
            self._changed.notify()

    def close(self) -> None:
        """Let the copies that were asked for end."""
        with self._changed:
            self._is_closed = True
            self._changed.notify()
        self._thread.join()

    def _source(
        self, key: TransferKey, replica: str, memory: MemoryDescriptor, slot: Slot
    ) -> BlockSource:
        peer = self._peer(replica, memory)
        if peer is not None:
            return peer.source(slot)
        assert self._prefill is not None, "nobody publishes for a replica that asks nobody"
        return RemoteBlocks(self._prefill.handle(replica), replica, key, self._memory.parts)

    def _peer(self, replica: str, memory: MemoryDescriptor) -> Peer | None:
        if replica not in self._peers:
            self._peers[replica] = self._join(replica, memory)
        return self._peers[replica]

    def _join(self, replica: str, memory: MemoryDescriptor) -> Peer | None:
        own = self._memory
        try:
            return SharedMemoryPeer(memory, own.description, own.parts)
        except (WrongLayout, SharedMemoryUnavailable) as error:
            logger.info("replica %s sends its blocks, for %s", replica, error.message)
            return None

    def _run(self) -> None:
        while (job := self._next()) is not None:
            code = self._move(job)
            # RuntimeError: the loop closed with the replica, nobody is left to hear.
            with suppress(RuntimeError):
                self._loop.call_soon_threadsafe(job.copied, job.copy, code)

    def _next(self) -> _Job | None:
        with self._changed:
            self._changed.wait_for(lambda: self._jobs or self._is_closed)
            return self._jobs.popleft() if self._jobs else None

    def _move(self, job: _Job) -> TransferCode | None:
        copy = job.copy
        if job.source is None:
            return TransferCode.CANCELLED
        try:
            is_good = job.source.copy(copy.source_block_ids, copy.target_block_ids, copy.layers)
        except WrongLayout:
            return TransferCode.WRONG_LAYOUT
        if not is_good:
            return TransferCode.MISMATCH
        num_layers = copy.layers[1] - copy.layers[0]
        self._figures.copied(len(copy.source_block_ids) * num_layers * self.layer_bytes)
        return None
