"""Routing and experts: which experts a row goes through, and the weighted sum of what they give.

    logits ─ route ─► ids, weights        x, ids, weights ─ experts ─► sums over these experts

`experts` takes any range of a layer's experts, or some of the columns of each: a rank that has only
such a part gives a partial sum, and the layer's result is the sum over ranks. Everything here is in
float32 but the experts' products, which are those of `linear`, and what lies between their two.
A row's results have the same bits whatever else is in the batch; experts are summed in ascending
order. Weights of an expert that no row goes to are not read.
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from rtp_serve.ops import reference
from rtp_serve.ops.dispatch import ops_for
from rtp_serve.ops.gemm import PackedWeight
from rtp_serve.ops.tensor import Tensor


@dataclass(frozen=True, slots=True, eq=False)
class ExpertWeights:
    """Gated MLPs of one shape, one behind the other; both sizes are multiples of 32."""

    gate_up: PackedWeight
    """[num_experts * 2 * intermediate_size, hidden_size]: an expert's gate, then its up."""

    down: PackedWeight
    """[num_experts * hidden_size, intermediate_size]."""

    num_experts: int

    first_expert: int = 0
    """Of the layer's, where these are some of them."""


@dataclass(frozen=True, slots=True)
class Routing:
    """How a router chooses."""

    top_k: int
    """Experts of a row; at most 64."""

    is_renormalized: bool
    """Whether a row's weights add up to 1, or only those of all experts do."""


def route(logits: Tensor, routing: Routing) -> tuple[Tensor, Tensor]:
    """logits [n, num_experts], float32 → ids, int32, and weights, float32, both [n, top_k].

    The experts with the largest logits, in falling order, of equal ones the lower first; weights
    are their softmax. A row with NaN has valid ids and NaN for weights.
    """
    ids, weights = ops_for(logits).route(logits, routing.top_k, routing.is_renormalized)
    return ids, weights


def sigmoid(x: Tensor) -> Tensor:
    """Of x [n], float32, whose elements may lie apart: [n]."""
    out: Tensor = ops_for(x).sigmoid(x)
    return out


def experts(x: Tensor, ids: Tensor, weights: Tensor, local: ExpertWeights) -> Tensor:
    """Σ weight · down(silu(gate(x)) · up(x)) over a row's experts that are in `local`.

    x [n, hidden_size], of the weights' dtype; ids [n, top_k], int32, of the layer's experts, and
    weights [n, top_k], float32. [n, hidden_size], float32; zeros for a row that has none here.
    """
    out: Tensor
    if local.gate_up.kernel is None or local.down.kernel is None:
        out = reference.experts(
            x, ids - local.first_expert, weights, local.gate_up.data, local.down.data
        )
    else:
        out = ops_for(x).experts(
            x,
            ids,
            weights,
            local.gate_up.kernel,
            local.down.kernel,
            local.num_experts,
            local.first_expert,
        )
    return out


def add_load(load: NDArray[np.int64], ids: Tensor) -> None:
    """Count the rows that went to each expert on: load [num_experts]."""
    load += torch.bincount(ids.flatten(), minlength=len(load)).cpu().numpy()
