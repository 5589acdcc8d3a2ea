"""What a decode and a prefill replica tell each other about a transfer, below what a request is.

    prefill → decode   Accepted … · Ready … · (the first token) · Failed · Heartbeat
    decode → prefill   Received · Abort · Heartbeat

Frames travel on one channel in order. The control call and the frame of the first token carry
requests and tokens and belong to whoever owns the channel; the tag `FIRST_TOKEN_TAG` is kept for
the latter. Everything is msgpack with a schema; nothing here knows sockets.
"""

import hashlib
from enum import StrEnum
from typing import Annotated

import msgspec

from rtp_serve.kv_cache.spec import KVCacheSpec, KVFormat, TileOrder

FIRST_TOKEN_TAG = 3

Span = tuple[int, int]
"""[begin, end)."""

Count = Annotated[int, msgspec.Meta(ge=0)]


class TransferCode(StrEnum):
    """Why a transfer, or one attempt at it, came to nothing."""

    NO_RESERVATION = "no_reservation"
    """The decode replica has no blocks for it."""

    NO_PEER = "no_peer"
    """There is no prefill replica to ask, or no other one."""

    TRANSFER_TIMEOUT = "transfer_timeout"
    """The request's deadline has passed."""

    PEER_LOST = "peer_lost"
    """The other side's process, node or connection is gone, or it said nothing for a lease."""

    PEER_REFUSED = "peer_refused"
    """The prefill replica did not take it, or could not go on: no room, preempted, draining."""

    PEER_FAILED = "peer_failed"
    """The prefill replica's engine has failed."""

    OTHER_WEIGHTS = "other_weights"
    """The prefill replica has other weights than those that the blocks were reserved for."""

    WRONG_LAYOUT = "wrong_layout"
    """The two memories hold a block in different ways."""

    MISMATCH = "mismatch"
    """Blocks were given back while they were copied, or a checksum differs."""

    BAD_FRAME = "bad_frame"
    """The other side said what the protocol does not allow."""

    CANCELLED = "cancelled"
    """Nobody wants the answer any more."""


class TransferKey(msgspec.Struct, frozen=True, array_like=True):
    """Names one attempt. Frames of another epoch than the current one are dropped."""

    transfer: str
    """Never given twice by one decode replica."""

    epoch: int = 1


class PartDescriptor(msgspec.Struct, frozen=True, array_like=True):
    """One rank's part of a KV memory: [num_blocks, num_layers, 2, heads of the part, tile]."""

    file: str
    """Name in shared memory."""

    num_bytes: Count
    heads: Span
    """Key/value heads. Several parts may have the same."""


class SlotsDescriptor(msgspec.Struct, frozen=True, array_like=True):
    """Where a prefill replica's epochs are, see `transport.slots`."""

    file: str
    num_slots: Count


class MemoryDescriptor(msgspec.Struct, frozen=True):
    """A replica's KV memory: how it holds blocks, and where they are."""

    num_layers: Count
    num_kv_heads: Count
    """Of the model."""

    tile_bytes: Count
    """One head's keys or values of one block and layer."""

    block_size: Count
    """Tokens."""

    format: KVFormat
    tile_order: TileOrder
    num_blocks: Count
    parts: tuple[PartDescriptor, ...] = ()
    """In order of rank; empty where the memory cannot be mapped."""

    slots: SlotsDescriptor | None = None

    @property
    def files(self) -> tuple[str, ...]:
        """Names of all that can be mapped."""
        slots = () if self.slots is None else (self.slots.file,)
        return (*(part.file for part in self.parts), *slots)

    @property
    def layout_digest(self) -> str:
        """Equal of two memories if blocks can be copied between them, however heads are divided."""
        fields = (
            self.num_layers,
            self.num_kv_heads,
            self.tile_bytes,
            self.block_size,
            str(self.format),
            str(self.tile_order),
        )
        return hashlib.blake2b(repr(fields).encode(), digest_size=16).hexdigest()


def describe(
    spec: KVCacheSpec,
    tile_order: TileOrder,
    num_blocks: int,
    parts: tuple[PartDescriptor, ...] = (),
    slots: SlotsDescriptor | None = None,
) -> MemoryDescriptor:
    """`spec` is the model's, with the heads of all ranks."""
    return MemoryDescriptor(
        num_layers=spec.num_layers,
        num_kv_heads=spec.num_kv_heads,
        tile_bytes=spec.block_size * spec.head_dim * spec.format.itemsize,
        block_size=spec.block_size,
        format=spec.format,
        tile_order=tile_order,
        num_blocks=num_blocks,
        parts=parts,
        slots=slots,
    )


class Accepted(msgspec.Struct, frozen=True, array_like=True, tag=1):
    """The prompt's chain has these blocks, from `first_block` on. More may follow, without gaps."""

    key: TransferKey
    first_block: Count
    """Index in the chain of the first of `block_ids`."""

    block_ids: tuple[int, ...]
    """In the prefill replica's memory."""

    slot: Count
    slot_value: Count
    """What the slot has as long as the blocks are there."""

    num_cached_blocks: Count = 0
    """Of the chain, what the prefill replica did not have to compute."""


class Ready(msgspec.Struct, frozen=True, array_like=True, tag=2):
    """These layers of these blocks hold their final bytes."""

    key: TransferKey
    blocks: Span
    """Indexes in the chain."""

    layers: Span


class Failed(msgspec.Struct, frozen=True, array_like=True, tag=4):
    """From the prefill replica: nothing more will come, and the blocks are gone."""

    key: TransferKey
    code: TransferCode
    message: str = ""


class Heartbeat(msgspec.Struct, frozen=True, array_like=True, tag=5):
    """Of either side: it lives, and so do its transfers on this channel."""


class Received(msgspec.Struct, frozen=True, array_like=True, tag=6):
    """From the decode replica: it has all of it, and needs the blocks no more."""

    key: TransferKey


class Abort(msgspec.Struct, frozen=True, array_like=True, tag=7):
    """From the decode replica: it wants no more of this attempt, and reads nothing more of it."""

    key: TransferKey
