"""The ops by the compiled kernels: allocate the output, hand everything over. CPU only.

Types, shapes and layouts are checked over there, with the operands' names; nothing is copied.
Tensors go as DLPack capsules: asking each for its `__dlpack__` would take four times as long.
"""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from rtp_kernels import _C
from rtp_serve.ops import kv_layout
from rtp_serve.ops.draws import Draws, Logits, Logprobs
from rtp_serve.ops.host_array import dlpack as dl
from rtp_serve.ops.tensor import Tensor


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    out = torch.empty_like(x)
    _C.rms_norm(dl(out), dl(x), dl(weight), eps)
    return out


def rotary(
    query: Tensor, key: Tensor, positions: Tensor, cos_sin: Tensor, sections: Sequence[int] = ()
) -> None:
    _C.rotary(dl(query), dl(key), dl(positions), dl(cos_sin), sections)


def silu_and_mul(gate_up: Tensor) -> Tensor:
    out = gate_up.new_empty((*gate_up.shape[:-1], gate_up.shape[-1] // 2))
    _C.silu_and_mul(dl(out), dl(gate_up))
    return out


def route(logits: Tensor, top_k: int, is_renormalized: bool) -> tuple[Tensor, Tensor]:
    ids = torch.empty((len(logits), top_k), dtype=torch.int32)
    weights = torch.empty((len(logits), top_k))
    _C.route(dl(ids), dl(weights), dl(logits), is_renormalized)
    return ids, weights


def sigmoid(x: Tensor) -> Tensor:
    out = torch.empty(len(x))
    _C.sigmoid(dl(out), dl(x))
    return out


def experts(
    x: Tensor,
    ids: Tensor,
    weights: Tensor,
    gate_up: _C.LinearWeight,
    down: _C.LinearWeight,
    num_experts: int,
    first_expert: int,
) -> Tensor:
    out = torch.empty(x.shape)
    _C.experts(dl(out), dl(x), dl(ids), dl(weights), gate_up, down, num_experts, first_expert)
    return out


def write_kv(
    key: Tensor, value: Tensor, key_cache: Tensor, value_cache: Tensor, slots: Tensor
) -> None:
    _C.write_kv(dl(key), dl(value), dl(key_cache), dl(value_cache), dl(slots))


def gather_kv(cache: Tensor, block_ids: Tensor) -> Tensor:
    tiles = cache[block_ids]
    rows = (kv_layout.key_rows(tiles[:, :, 0]), kv_layout.value_rows(tiles[:, :, 1]))
    return torch.stack(rows, dim=2)


def scatter_kv(data: Tensor, cache: Tensor, block_ids: Tensor) -> None:
    cache[block_ids, :, 0] = kv_layout.key_tiles(data[:, :, 0])
    cache[block_ids, :, 1] = kv_layout.value_tiles(data[:, :, 1])


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
    out = torch.empty_like(query)
    _C.paged_attention(
        dl(out),
        dl(query),
        dl(key_cache),
        dl(value_cache),
        dl(block_tables),
        dl(query_start_loc),
        dl(seq_lens),
        scale,
        window,
        None if ancestor_mask is None else dl(ancestor_mask),
    )
    return out


def greedy(logits: Logits) -> NDArray[np.int32]:
    token_ids = np.empty(len(logits), np.int32)
    _C.greedy(token_ids, logits)
    return token_ids


def sample(logits: Logits, draws: Draws) -> NDArray[np.int32]:
    token_ids = np.empty(len(logits), np.int32)
    _C.sample(
        token_ids,
        logits,
        draws.temperature,
        draws.min_p,
        draws.top_k,
        draws.top_p,
        draws.number,
    )
    return token_ids


def logprobs(
    logits: Logits, rows: NDArray[np.int64], token_ids: NDArray[np.int32], num_top: int
) -> Logprobs:
    n, num_top = len(rows), min(num_top, logits.shape[1])
    own, ranks = np.empty(n), np.empty(n, np.int32)
    top, top_ids = np.empty((n, num_top)), np.empty((n, num_top), np.int32)
    _C.logprobs(own, ranks, top, top_ids, logits, rows, token_ids)
    return Logprobs(own, ranks, top_ids, top)


def uniforms(seeds: NDArray[np.uint64], positions: NDArray[np.int64]) -> NDArray[np.float64]:
    numbers = np.empty(len(seeds))
    _C.uniforms(numbers, seeds.view(np.int64), positions)
    return numbers
