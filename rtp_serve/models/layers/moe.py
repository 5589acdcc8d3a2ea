"""The sparse feed-forward block: a router, many experts, perhaps a shared one."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rtp_serve import ops
from rtp_serve.models.layers.linear import Linear, PackedLinear
from rtp_serve.models.layers.mlp import GatedMLP
from rtp_serve.models.layers.norm import RMSNorm


class SparseMLP:
    """Σ weight · expert(x) over the experts that the router chooses, + gate · shared expert(x)."""

    def __init__(
        self,
        router: ops.PackedWeight,
        routed: ops.ExpertWeights,
        routing: ops.Routing,
        num_experts: int,
        shared_expert: GatedMLP | None = None,
    ) -> None:
        """`router` gives a logit an expert and, if there is a shared one, its gate's.

        `num_experts` are the layer's; `routed` may be some of them.
        """
        self._router_weight = router
        self._router: Linear = PackedLinear(router, out_dtype=torch.float32)
        self._routed = routed
        self._routing = routing
        self.shared_expert = shared_expert
        self.load: NDArray[np.int64] = np.zeros(num_experts, np.int64)
        """[num_experts]: rows that went to each since the start."""

    def __call__(self, x: Tensor) -> Tensor:
        """x [num_tokens, hidden_size] → the same shape, float32: the residual stream rounds once."""
        logits = self._router(x)
        num_experts = len(self.load)
        ids, weights = ops.route(logits[:, :num_experts], self._routing)
        ops.add_load(self.load, ids)
        sums = ops.experts(x, ids, weights, self._routed)
        if self.shared_expert is not None:
            gate = ops.sigmoid(logits[:, num_experts])
            sums += gate[:, None] * self.shared_expert(x).float()
        return sums

    def sublayer(self, norm: RMSNorm) -> ops.Sublayer | None:
        """Norm, experts and residual sum as one kernel; None where single ops must do it."""
        shared = None
        if self.shared_expert is not None:
            weights = self.shared_expert.weights
            if weights is None:
                return None
            shared = ops.ExpertWeights(*weights, num_experts=1)
        return ops.moe_sublayer(
            norm.spec, self._router_weight, self._routed, self._routing, shared, self.load
        )
