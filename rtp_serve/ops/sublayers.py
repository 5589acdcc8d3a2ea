"""The halves of a decoder layer as compiled kernels, so that a run of them is one call.

A call per op leaves threads asleep and the interpreter at work some hundred times a step. A
sublayer is bound once to its weights; `run_sublayers` then takes a whole model's through one step.
It gives the same bits as the single ops. The reference has none: the makers here return None
wherever the compiled kernels do not serve the weights, and the caller computes op by op.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from rtp_serve.native.ended import error_of
from rtp_serve.ops.gemm import Norm, PackedWeight
from rtp_serve.ops.host_array import Array
from rtp_serve.ops.host_array import dlpack as dl
from rtp_serve.ops.metadata import AttentionMetadata
from rtp_serve.ops.moe import ExpertWeights, Routing

if TYPE_CHECKING:
    from rtp_kernels._C import Sublayer as Sublayer
    from rtp_serve.native.rank_group import RankGroup
else:
    Sublayer = Any


@dataclass(frozen=True, slots=True)
class HeadShape:
    """How the columns of a fused qkv projection split into heads: queries, keys, values."""

    num_heads: int
    num_kv_heads: int
    head_dim: int

    @property
    def scale(self) -> float:
        """What scores are multiplied by."""
        return float(self.head_dim**-0.5)


@dataclass(frozen=True, slots=True)
class Rope:
    """Angles of every position: cos_sin [max_positions, head_dim], fp32: cosines, then sines.

    `sections` says how many frequencies each of three rows of positions drives; else empty.
    """

    cos_sin: Array
    sections: Sequence[int] = ()


def attention_sublayer(
    layer: int,
    heads: HeadShape,
    norm: Norm,
    qkv: PackedWeight,
    o: PackedWeight,
    rope: Rope,
    head_norms: tuple[Norm, Norm] | None = None,
    group: "RankGroup | None" = None,
) -> Sublayer | None:
    """residual += o(attend(rope(qkv(norm(residual))))), writing the layer's keys and values.

    `head_norms` are of query and key heads, before they turn. Under a `group`, `heads` and weights
    are a rank's part, and what is added is the sum of all ranks' products, in float32 and in rank
    order, rounded with the residual: residual = round(residual + Σ o_r(…)). The bias of `o`, if
    any, belongs to one rank. All sublayers of a run have the same group or none.
    """
    if qkv.kernel is None or o.kernel is None:
        return None
    query_norm, key_norm = (norm.weight for norm in head_norms) if head_norms else (None, None)
    sublayer: Sublayer = _kernels().attention_sublayer(
        norm.weight,
        norm.eps,
        qkv.kernel,
        o.kernel,
        query_norm,
        key_norm,
        rope.cos_sin,
        list(rope.sections),
        (heads.num_heads, heads.num_kv_heads, heads.head_dim),
        heads.scale,
        layer,
        None if group is None else group.kernel,
    )
    return sublayer


def mlp_sublayer(
    norm: Norm, gate_up: PackedWeight, down: PackedWeight, group: "RankGroup | None" = None
) -> Sublayer | None:
    """residual += down(silu_and_mul(gate_up(norm(residual)))); `group` as for attention."""
    if gate_up.kernel is None or down.kernel is None:
        return None
    weights = gate_up.kernel, down.kernel
    kernel = None if group is None else group.kernel
    sublayer: Sublayer = _kernels().mlp_sublayer(norm.weight, norm.eps, *weights, kernel)
    return sublayer


def moe_sublayer(
    norm: Norm,
    router: PackedWeight,
    routed: ExpertWeights,
    routing: Routing,
    shared: ExpertWeights | None,
    load: NDArray[np.int64],
) -> Sublayer | None:
    """residual += experts(norm(residual)), by weights of the router, + gate · shared expert.

    `router` [num_experts, hidden_size] has one output more if there is a `shared` expert: its gate
    before the sigmoid. The layer's rows are counted on in `load` [num_experts].
    """
    weights = (router, routed.gate_up, routed.down)
    shared_weights = (shared.gate_up, shared.down) if shared is not None else ()
    if any(weight.kernel is None for weight in (*weights, *shared_weights)):
        return None
    assert routed.num_experts == len(load), f"{routed.num_experts} of {len(load)} experts"
    shared_kernels = [weight.kernel for weight in shared_weights] or [None, None]
    sublayer: Sublayer = _kernels().moe_sublayer(
        norm.weight,
        norm.eps,
        *[weight.kernel for weight in weights],
        *shared_kernels,
        routing.top_k,
        routing.is_renormalized,
        load,
    )
    return sublayer


def run_sublayers(
    sublayers: Sequence[Sublayer],
    residual: Array,
    positions: NDArray[np.int64],
    kv_cache: Array,
    metadata: AttentionMetadata[NDArray[Any]],
) -> None:
    """Run them in order, adding to `residual` [num_tokens, hidden_size] in place.

    positions [num_tokens], or [3, num_tokens] under M-RoPE; kv_cache [num_blocks, num_layers, 2,
    num_kv_heads, block_size, head_dim], of residual's dtype. Raises TypeError or ValueError before
    anything is computed; a RankError where a group's rank is lost or has ended it.
    """
    kernels = _kernels()
    try:
        kernels.run_sublayers(
            sublayers,
            dl(residual),
            positions,
            dl(kv_cache),
            *metadata.arguments,
        )
    except kernels.Ended as ended:
        raise error_of(ended) from None


@cache
def _kernels() -> ModuleType:
    """Imported late: they are not built everywhere."""
    return import_module("rtp_kernels._C")
