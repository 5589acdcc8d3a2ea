"""The one doorway to tensor kernels: what models compute with.

Each op runs compiled or as plain torch (see `dispatch`) with the same meaning. With the compiled
kernels a row of a result is a function of that row's inputs alone, bit for bit, whatever else is
in the batch and however many threads work. Types are bfloat16 or float32, one for all floating
operands of a call; a wrong type raises TypeError, a wrong shape or layout ValueError.
"""

from collections.abc import Sequence

from rtp_serve.ops.decoder import BoundDecoder, bind_decoder
from rtp_serve.ops.dispatch import ops_for, set_num_threads
from rtp_serve.ops.gemm import (
    Norm,
    PackedWeight,
    WeightPacker,
    coded_shape,
    embedding,
    from_packed,
    greedy,
    has_fast_codes,
    has_fast_screen,
    linear,
    logits,
    pack_weight,
    packed_shape,
    screen_shape,
    with_codes,
    with_screen,
)
from rtp_serve.ops.host_array import Array, HostArray, array_bytes, as_tensor, dtype_name
from rtp_serve.ops.metadata import AttentionMetadata, to_device
from rtp_serve.ops.moe import ExpertWeights, Routing, add_load, experts, route, sigmoid
from rtp_serve.ops.sublayers import (
    HeadShape,
    Rope,
    Sublayer,
    attention_sublayer,
    mlp_sublayer,
    moe_sublayer,
    run_sublayers,
)
from rtp_serve.ops.tensor import Tensor

__all__ = [
    "Array",
    "AttentionMetadata",
    "BoundDecoder",
    "ExpertWeights",
    "HeadShape",
    "HostArray",
    "Norm",
    "PackedWeight",
    "Rope",
    "Routing",
    "Sublayer",
    "WeightPacker",
    "add_load",
    "array_bytes",
    "as_tensor",
    "attention_sublayer",
    "bind_decoder",
    "coded_shape",
    "dtype_name",
    "embedding",
    "experts",
    "from_packed",
    "gather_kv",
    "greedy",
    "has_fast_codes",
    "has_fast_screen",
    "linear",
    "logits",
    "mlp_sublayer",
    "moe_sublayer",
    "pack_weight",
    "packed_shape",
    "paged_attention",
    "rms_norm",
    "rotary",
    "route",
    "run_sublayers",
    "scatter_kv",
    "screen_shape",
    "set_num_threads",
    "sigmoid",
    "silu_and_mul",
    "to_device",
    "with_codes",
    "with_screen",
    "write_kv",
]


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x / rms(x) * weight along the last dimension, d: a new contiguous tensor of x's shape.

    x is [n, d] or [n, heads, d]; its rows may lie apart. weight is [d].
    """
    out: Tensor = ops_for(x).rms_norm(x, weight, eps)
    return out


def rotary(
    query: Tensor, key: Tensor, positions: Tensor, cos_sin: Tensor, sections: Sequence[int] = ()
) -> None:
    """Turns query and key [n, heads, d] in place by their positions, halves against each other.

    `positions` is int64, [n], or [3, n] (time, height, width): then row i drives `sections[i]` of
    the d/2 frequencies, in order. `cos_sin` is [max_positions, d], float32: cosines, then sines.
    """
    ops_for(query).rotary(query, key, positions, cos_sin, sections)


def silu_and_mul(gate_up: Tensor) -> Tensor:
    """silu of the first half of the columns times the second half: [n, 2 d] gives [n, d]."""
    out: Tensor = ops_for(gate_up).silu_and_mul(gate_up)
    return out


def write_kv(
    key: Tensor, value: Tensor, key_cache: Tensor, value_cache: Tensor, slots: Tensor
) -> None:
    """Puts key and value [n, num_kv_heads, d] into their slots of the paged cache.

    The caches are [num_blocks, num_kv_heads, 16, d] in the device layout (`kv_cache/spec.py`), d
    even, their blocks equally far apart; `slots` is [n], int64, block * 16 + offset, -1 for a token
    that is not written.
    """
    ops_for(key).write_kv(key, value, key_cache, value_cache, slots)


def gather_kv(cache: Tensor, block_ids: Tensor) -> Tensor:
    """Blocks of a cache in the canonical layout, exactly: a new tensor.

    cache [num_blocks, num_layers, 2 (key, value), num_kv_heads, 16, d] is in the device layout,
    `block_ids` is [n], int64; the result is [n, num_layers, 2, num_kv_heads, 16, d].
    """
    out: Tensor = ops_for(cache).gather_kv(cache, block_ids)
    return out


def scatter_kv(data: Tensor, cache: Tensor, block_ids: Tensor) -> None:
    """Fills blocks of a cache with what `gather_kv` gave, of this cache or another."""
    ops_for(cache).scatter_kv(data, cache, block_ids)


def paged_attention(  # noqa: PLR0913
    query: Tensor,
    key_cache: Tensor,
    value_cache: Tensor,
    block_tables: Tensor,
    query_start_loc: Tensor,
    seq_lens: Tensor,
    scale: float,
    window: int = 0,
    ancestor_mask: Tensor | None = None,
) -> Tensor:
    """Causal attention of query [n, num_heads, d] over the paged cache; a new tensor of its shape.

    The caches are those of `write_kv`.

    Sequence i has the tokens [query_start_loc[i], query_start_loc[i + 1]) of query, the last of
    them at position seq_lens[i] - 1; its keys lie in the blocks of block_tables[i], in order. All
    three are int32, [num_seqs + 1], [num_seqs] and [num_seqs, max_blocks]. Rows of query beyond
    the last sequence give zeros. Heads share keys in groups of num_heads / num_kv_heads.

    `ancestor_mask` [n], int64, makes a tree of a sequence's tokens: bit j of a token's mask says
    that it sees the sequence's j-th token of this step (itself or one before it; name itself). It
    sees all keys before this step, and stands behind the last key it sees. 0 is a causal token.

    `window` > 0 leaves a token that many of the last keys it sees, its own included.
    """
    out: Tensor = ops_for(query).paged_attention(
        query,
        key_cache,
        value_cache,
        block_tables,
        query_start_loc,
        seq_lens,
        scale,
        window,
        ancestor_mask,
    )
    return out
