"""The format of the KV cache: what one block is and how many fit. No memory here.

Device layout: a block's keys and values of all layers are one piece of memory, which tiers take and
give back as it is, and one head of one layer's block is a contiguous tile:

    [num_blocks, num_layers, 2 (key, value), num_kv_heads, block_size, head_dim]

Inside a tile the torch ops keep this order; the compiled ones, which take block_size 16 only, have
the order in which attention reads (a register is 16 tokens of keys, or columns of values):

    key     bfloat16 [head_dim / 2, 16, 2]   float32 [head_dim, 16]
    value   bfloat16 [8, head_dim, 2]        float32 [16, head_dim]

Tiers hold blocks in the order of the device that wrote them, and name it (`TileOrder`). Devices of
different orders exchange blocks in the canonical layout, in which tiles are plain:

    [num_layers, 2 (key, value), num_kv_heads, block_size, head_dim]

A tensor-parallel rank owns a range of `num_kv_heads`, so any rank count reads any other's blocks.
"""

from dataclasses import dataclass
from enum import StrEnum


class KVFormat(StrEnum):
    """How an element of the cache is stored."""

    BF16 = "bfloat16"
    FP32 = "float32"

    @property
    def itemsize(self) -> int:
        return {KVFormat.BF16: 2, KVFormat.FP32: 4}[self]


class TileOrder(StrEnum):
    """Where the elements of a tile lie."""

    PLAIN = "plain"
    WORDS = "words"
    """As the compiled kernels read them, see above."""


@dataclass(frozen=True, slots=True)
class KVCacheSpec:
    """Shape and format of one rank's cache."""

    num_layers: int
    num_kv_heads: int
    head_dim: int
    block_size: int = 16
    format: KVFormat = KVFormat.BF16

    @property
    def block_bytes(self) -> int:
        """Bytes of one block over all layers, keys and values."""
        elements = self.num_layers * 2 * self.num_kv_heads * self.block_size * self.head_dim
        return elements * self.format.itemsize

    def blocks_in(self, memory_bytes: int) -> int:
        """How many blocks fit into `memory_bytes`."""
        return memory_bytes // self.block_bytes
