"""KV memory of all ranks of an engine, as its leader's process sees it."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

from rtp_serve.disaggregation.memory import KVMemory
from rtp_serve.disaggregation.protocol import PartDescriptor, Span, describe
from rtp_serve.disaggregation.transport.parts import KVParts, part_of
from rtp_serve.kv_cache.spec import KVCacheSpec, TileOrder
from rtp_serve.kv_cache.tensors import KVCacheTensors
from rtp_serve.kv_store.device_blocks import DeviceBlocks, DividedBlocks, WholeBlocks


@dataclass(frozen=True, slots=True)
class RankMemory:
    """One rank's part of every block."""

    heads: Span
    """Key/value heads."""

    data: memoryview
    """[num_blocks * block_bytes], writable."""

    file: str | None
    """By which other processes of the node find it; None if they do not."""


@dataclass(frozen=True, slots=True)
class RanksMemory:
    """In order of rank."""

    spec: KVCacheSpec
    """Rank 0's."""

    num_blocks: int
    tile_order: TileOrder
    ranks: tuple[RankMemory, ...]

    @property
    def blocks_spec(self) -> KVCacheSpec:
        """Of a block's parts of all ranks, one behind the other."""
        num_heads = sum(rank.heads[1] - rank.heads[0] for rank in self.ranks)
        return replace(self.spec, num_kv_heads=num_heads)

    @property
    def blocks(self) -> DeviceBlocks:
        """For the tiers below the device."""
        parts = [self._block_of(rank.data) for rank in self.ranks]
        return WholeBlocks(parts[0]) if len(parts) == 1 else DividedBlocks(parts)

    @property
    def exchanged(self) -> KVMemory:
        """For transfers to and from other engines."""
        num_heads = max(rank.heads[1] for rank in self.ranks)
        spec = replace(self.spec, num_kv_heads=num_heads)
        files = [rank.file for rank in self.ranks]
        descriptors = tuple(
            PartDescriptor(file, rank.data.nbytes, rank.heads)
            for file, rank in zip(files, self.ranks, strict=True)
            if file is not None
        )
        is_found = len(descriptors) == len(self.ranks)
        description = describe(
            spec, self.tile_order, self.num_blocks, descriptors if is_found else ()
        )
        parts = tuple(part_of(rank.data, description, rank.heads) for rank in self.ranks)
        return KVMemory(KVParts(parts), description)

    def _block_of(self, data: memoryview) -> Callable[[int], memoryview]:
        return partial(_block, data, data.nbytes // self.num_blocks)


def own_memory(tensors: KVCacheTensors, file: str | None) -> RanksMemory:
    """Of an engine of one rank."""
    data = tensors.memory
    whole = RankMemory((0, tensors.spec.num_kv_heads), data, file)
    return RanksMemory(tensors.spec, tensors.num_blocks, tensors.tile_order, (whole,))


def _block(data: memoryview, block_bytes: int, block_id: int) -> memoryview:
    return data[block_id * block_bytes : (block_id + 1) * block_bytes]
