"""The memory of the KV cache on one device. Knows nothing of sequences, hashes or ownership."""

import math
import mmap
from collections.abc import Sequence

import torch
from torch import Tensor

from rtp_serve import ops
from rtp_serve.kv_cache.memory import zeroed
from rtp_serve.kv_cache.spec import KVCacheSpec, KVFormat, TileOrder
from rtp_serve.ops.dispatch import Backend, backend

_DTYPES = {KVFormat.BF16: torch.bfloat16, KVFormat.FP32: torch.float32}

_QUICKLY_ZEROED_BYTES = 16 << 20


class KVCacheTensors:
    """Keys and values of `num_blocks` blocks in the device layout, zeroed."""

    def __init__(
        self,
        spec: KVCacheSpec,
        num_blocks: int,
        device: torch.device | str = "cpu",
        memory: mmap.mmap | None = None,
    ) -> None:
        """`memory` is zeros of the right size, or None for some of its own."""
        self.spec = spec
        self.num_blocks = num_blocks
        # [num_blocks, num_layers, 2 (key, value), num_kv_heads, block_size, head_dim]
        shape = (
            num_blocks,
            spec.num_layers,
            2,
            spec.num_kv_heads,
            spec.block_size,
            spec.head_dim,
        )
        dtype = _DTYPES[spec.format]
        if memory is None:
            self.data = _zeros(shape, dtype, torch.device(device))
        else:
            self.data = torch.frombuffer(memory, dtype=dtype).view(shape)
        self._layers = [
            (self.data[:, layer, 0], self.data[:, layer, 1]) for layer in range(spec.num_layers)
        ]
        if self.data.is_cpu:
            # [num_blocks, block_bytes]
            self._bytes = self.data.flatten(1).view(torch.uint8).numpy()

    def layer(self, index: int) -> tuple[Tensor, Tensor]:
        """Key and value of a layer, each [num_blocks, num_kv_heads, block_size, head_dim], blocks a
        stride apart.

        Read and written by ops alone: what lies inside a head's tile is theirs.
        """
        return self._layers[index]

    @property
    def tile_order(self) -> TileOrder:
        """Where the elements of a tile lie, in the device layout."""
        is_compiled = self.data.is_cpu and backend() is Backend.COMPILED
        return TileOrder.WORDS if is_compiled else TileOrder.PLAIN

    @property
    def memory(self) -> memoryview:
        """The bytes of all blocks, writable. Of a cache in the CPU's memory."""
        return self._bytes.reshape(-1).data

    def block(self, block_id: int) -> memoryview:
        """The bytes of a block, writable, in the device layout. Of a cache in the CPU's memory."""
        return memoryview(self._bytes[block_id])

    def export_blocks(self, block_ids: Sequence[int]) -> Tensor:
        """A contiguous copy in the canonical layout, one block after the other:

        [len(block_ids), num_layers, 2, num_kv_heads, block_size, head_dim].
        """
        return ops.gather_kv(self.data, self._index(block_ids))

    def import_blocks(self, block_ids: Sequence[int], data: Tensor) -> None:
        """Fill blocks from what `export_blocks` gave, here or elsewhere."""
        expected = (len(block_ids), *self.data.shape[1:])
        if data.shape != expected or data.dtype != self.data.dtype:
            raise ValueError(
                f"data must be {list(expected)} {self.data.dtype}, "
                f"got {list(data.shape)} {data.dtype}"
            )
        ops.scatter_kv(data.to(self.data.device), self.data, self._index(block_ids))

    def copy_block(self, source: int, target: int) -> None:
        """Make block `target` hold what `source` holds."""
        self._index((source, target))
        self.data[target] = self.data[source]

    def _index(self, block_ids: Sequence[int]) -> Tensor:
        for block_id in block_ids:
            if not 0 <= block_id < self.num_blocks:
                raise ValueError(
                    f"block id must be from 0 to {self.num_blocks - 1}, got {block_id}"
                )
        return torch.tensor(block_ids, dtype=torch.int64, device=self.data.device)


def _zeros(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    num_bytes = math.prod(shape) * dtype.itemsize
    if device.type != "cpu" or num_bytes <= _QUICKLY_ZEROED_BYTES:
        return torch.zeros(shape, dtype=dtype, device=device)
    return torch.frombuffer(zeroed(num_bytes), dtype=dtype).view(shape)
