"""Small disk tiers, blocks whose bytes follow from their key, and what a reader gets."""

from collections.abc import Iterable, Sequence
from pathlib import Path

from rtp_serve.clock import Clock, VirtualClock
from rtp_serve.kv_cache.block import BlockHash
from rtp_serve.kv_store.disk.file_io import FileIO
from rtp_serve.kv_store.disk.pages import PAGE_BYTES, allocate
from rtp_serve.kv_store.disk.reader import DiskReader, ReadOutcome
from rtp_serve.kv_store.disk.record import DiskLocation, record_bytes
from rtp_serve.kv_store.disk.segment import new_header
from rtp_serve.kv_store.disk.settings import DiskSettings
from rtp_serve.kv_store.disk.tier import DiskTier
from rtp_serve.kv_store.disk.writer import BlockToStore
from rtp_serve.kv_store.slab_header import checksum_of
from tests.unit.kv_store.blocks import requests_of

BLOCK_BYTES = 5000
MAX_BYTES = 1 << 20
SETTINGS = DiskSettings(MAX_BYTES, segment_bytes=16 * PAGE_BYTES, min_free_bytes=0, retry_s=10)
PER_SEGMENT = (SETTINGS.file_bytes - new_header(1, SETTINGS.file_bytes).start) // record_bytes(
    BLOCK_BYTES
)
"""Blocks in one segment."""


def content(key: BlockHash, num_bytes: int = BLOCK_BYTES) -> memoryview:
    return memoryview((key * (num_bytes // len(key) + 1))[:num_bytes])


def blocks_of(
    chain: Sequence[BlockHash], start: int = 0, num_bytes: int = BLOCK_BYTES
) -> list[BlockToStore]:
    """The blocks of a chain from `start` on."""
    blocks = []
    for request in requests_of(chain, start):
        payload = content(request.key, num_bytes)
        blocks.append(BlockToStore(request, payload, checksum_of(payload)))
    return blocks


def make_tier(
    directory: Path,
    settings: DiskSettings = SETTINGS,
    clock: Clock | None = None,
    io: FileIO | None = None,
) -> DiskTier:
    return DiskTier(directory, settings, clock or VirtualClock(), io)


def put(tier: DiskTier, chain: Sequence[BlockHash], start: int = 0) -> tuple[bool, ...]:
    return tier.put(blocks_of(chain, start))


def read(
    directory: Path, locations: Sequence[DiskLocation], io: FileIO | None = None
) -> list[ReadOutcome]:
    """What a reader gets, whose bytes must be right."""
    buffers = [allocate(location.num_bytes) for location in locations]
    with DiskReader(directory, io) as reader:
        outcomes = reader.read(locations, buffers)
    for location, buffer, outcome in zip(locations, buffers, outcomes, strict=True):
        if outcome is ReadOutcome.HIT:
            assert buffer == content(location.key, location.num_bytes), "wrong bytes were served"
    return outcomes


def readable(tier: DiskTier, directory: Path, chain: Sequence[BlockHash]) -> int:
    """How many blocks of a chain are found and read, from its beginning."""
    outcomes = read(directory, tier.lookup(chain))
    return [*outcomes, None].index(next((each for each in outcomes if each != "hit"), None))


def disk_bytes(directory: Path) -> int:
    """What the directory takes on the disk."""
    return sum(path.stat().st_blocks * 512 for path in [directory, *directory.iterdir()])


def segment_files(directory: Path) -> list[Path]:
    """The oldest first."""
    return sorted(directory.glob("*.segment"))


def keys_of(chains: Iterable[Sequence[BlockHash]]) -> set[BlockHash]:
    return {key for chain in chains for key in chain}
