"""A whole decoder as one compiled call: token ids in, logits or the ids of the largest ones out.

A step reads all weights, and afterwards nothing that Python needs is in a cache any more: each line
between two kernels takes three times as long as elsewhere. So all of it is one call, with the bits
of `embedding`, `run_sublayers`, `logits` and `sampling.greedy`, one after the other.
"""

from collections.abc import Sequence
from importlib import import_module
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from rtp_serve.ops.gemm import Norm, PackedWeight
from rtp_serve.ops.host_array import Array
from rtp_serve.ops.host_array import dlpack as dl
from rtp_serve.ops.metadata import AttentionMetadata
from rtp_serve.ops.sublayers import Sublayer

if TYPE_CHECKING:
    from rtp_kernels import _C

HostMetadata = AttentionMetadata[NDArray[Any]]


class BoundDecoder:
    """A model's weights and a KV cache, bound once.

    Calls take token_ids and positions [num_tokens], int64 (positions also [3, num_tokens]), and
    rows [n], int64: the tokens whose logits are wanted. Keys and values are written to the cache.
    Raises TypeError or ValueError before anything is computed.
    """

    def __init__(self, kernel: "_C.Decoder", vocab_size: int) -> None:
        self._kernel = kernel
        self._vocab_size = vocab_size

    def logits(
        self,
        token_ids: NDArray[np.int64],
        positions: NDArray[np.int64],
        metadata: HostMetadata,
        rows: NDArray[np.int64],
    ) -> NDArray[np.float32]:
        """[n, vocab_size]"""
        out = np.empty((len(rows), self._vocab_size), np.float32)
        self._kernel.logits(out, token_ids, rows, positions, *metadata.arguments)
        return out

    def greedy(
        self,
        token_ids: NDArray[np.int64],
        positions: NDArray[np.int64],
        metadata: HostMetadata,
        rows: NDArray[np.int64],
    ) -> NDArray[np.int32]:
        """[n]: the id of each row's largest logit, the lowest among equals, or NO_TOKEN."""
        out = np.empty(len(rows), np.int32)
        self._kernel.greedy(out, token_ids, rows, positions, *metadata.arguments)
        return out


def bind_decoder(
    embedding: PackedWeight,
    sublayers: Sequence[Sublayer],
    norm: Norm,
    head: PackedWeight,
    kv_cache: Array,
) -> BoundDecoder | None:
    """`norm` is the final one, `kv_cache` as for `run_sublayers`; None where the compiled kernels
    do not serve the weights. No sublayer has a group."""
    if embedding.kernel is None or head.kernel is None:
        return None
    kernels = import_module("rtp_kernels._C")
    kernel = kernels.Decoder(
        embedding.kernel, tuple(sublayers), norm.weight, norm.eps, head.kernel, dl(kv_cache)
    )
    return BoundDecoder(kernel, head.num_rows)
