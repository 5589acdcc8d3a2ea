"""The memory of the KV cache on one device. Knows nothing of sequences, hashes or ownership."""

import mmap
from collections.abc import Sequence
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray

from rtp_serve import ops
from rtp_serve.kv_cache.memory import zeroed
from rtp_serve.kv_cache.spec import KVCacheSpec, KVFormat, TileOrder
from rtp_serve.ops.dispatch import Backend, backend
from rtp_serve.ops.tensor import Tensor

_DTYPES = {KVFormat.BF16: "bfloat16", KVFormat.FP32: "float32"}

_QUICKLY_ZEROED_BYTES = 16 << 20


class KVCacheTensors:
    """Keys and values of `num_blocks` blocks in the device layout, zeroed."""

    def __init__(
        self,
        spec: KVCacheSpec,
        num_blocks: int,
        device: str = "cpu",
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
        self.array: ops.Array
        if device == "cpu":
            zeros = memory if memory is not None else _zeros(num_blocks * spec.block_bytes)
            self.array = ops.HostArray.over(zeros, shape, dtype)
            # [num_blocks, block_bytes]
            self._bytes = np.frombuffer(zeros, np.uint8).reshape(num_blocks, -1)
        else:
            self.array = torch.zeros(shape, dtype=getattr(torch, dtype), device=device)

    @cached_property
    def data(self) -> Tensor:
        """The same memory as a tensor, of the same shape."""
        return ops.as_tensor(self.array)

    @cached_property
    def _layers(self) -> list[tuple[Tensor, Tensor]]:
        return [
            (self.data[:, layer, 0], self.data[:, layer, 1])
            for layer in range(self.spec.num_layers)
        ]

    def layer(self, index: int) -> tuple[Tensor, Tensor]:
        """Key and value of a layer, each [num_blocks, num_kv_heads, block_size, head_dim], blocks a
        stride apart.

        Read and written by ops alone: what lies inside a head's tile is theirs.
        """
        return self._layers[index]

    @property
    def tile_order(self) -> TileOrder:
        """Where the elements of a tile lie, in the device layout."""
        is_compiled = self.array.is_cpu and backend() is Backend.COMPILED
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
        self._check((source, target))
        if isinstance(self.array, ops.HostArray):
            self.array.words[target] = self.array.words[source]
        else:
            self.array[target] = self.array[source]

    def _index(self, block_ids: Sequence[int]) -> Tensor:
        self._check(block_ids)
        return torch.tensor(block_ids, dtype=torch.int64, device=self.data.device)

    def _check(self, block_ids: Sequence[int]) -> None:
        for block_id in block_ids:
            if not 0 <= block_id < self.num_blocks:
                raise ValueError(
                    f"block id must be from 0 to {self.num_blocks - 1}, got {block_id}"
                )


def _zeros(num_bytes: int) -> mmap.mmap | NDArray[np.uint8]:
    is_quick = num_bytes <= _QUICKLY_ZEROED_BYTES
    return np.zeros(num_bytes, np.uint8) if is_quick else zeroed(num_bytes)
