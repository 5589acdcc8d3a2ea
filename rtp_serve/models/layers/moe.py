"""The sparse feed-forward block: a router, many experts, perhaps a shared one."""

import numpy as np
from numpy.typing import NDArray

from rtp_serve import ops
from rtp_serve.models.layers.expert_parallel import ExpertExchange
from rtp_serve.models.layers.linear import Linear, PackedLinear
from rtp_serve.models.layers.mlp import GatedMLP
from rtp_serve.models.layers.norm import RMSNorm
from rtp_serve.ops.tensor import Tensor
from rtp_serve.parallel.collectives import Collectives


class SparseMLP:
    """Σ weight · expert(x) over the experts that the router chooses, + gate · shared expert(x)."""

    def __init__(
        self,
        router: ops.PackedWeight,
        routed: ops.ExpertWeights,
        routing: ops.Routing,
        num_experts: int,
        shared_expert: GatedMLP | None = None,
        *,
        exchange: ExpertExchange | None = None,
        summed_by: Collectives | None = None,
    ) -> None:
        """`router` gives a logit an expert and, if there is a shared one, its gate's.

        `num_experts` are the layer's. `routed` may be some of them: then `exchange` reaches the
        others. It may have some of the columns of each, as the shared one: then `summed_by` adds up
        what all ranks have of them.
        """
        self._router_weight = router
        self._router: Linear = PackedLinear(router, out_dtype="float32")
        self._routed = routed
        self._routing = routing
        self._exchange = exchange
        self._summed_by = summed_by
        self.shared_expert = shared_expert
        self.load: NDArray[np.int64] = np.zeros(num_experts, np.int64)
        """[num_experts]: of the rows that this rank routed, those that went to each expert."""

    def __call__(self, x: Tensor) -> Tensor:
        """x [num_tokens, hidden_size] → that shape in float32: the residual stream rounds once."""
        logits = self._router(x)
        num_experts = len(self.load)
        ids, weights = ops.route(logits[:, :num_experts], self._routing)
        ops.add_load(self.load, ids)
        if self._exchange is None:
            sums = self._run(x, ids, weights)
        else:
            sums = self._exchange(x, ids, weights, self._run)
        if self.shared_expert is not None:
            gate = ops.sigmoid(logits[:, num_experts])
            sums += gate[:, None] * self.shared_expert(x).float()
        if self._summed_by is not None:
            self._summed_by.all_reduce(sums)
        return sums

    def _run(self, x: Tensor, ids: Tensor, weights: Tensor) -> Tensor:
        return ops.experts(x, ids, weights, self._routed)

    def sublayer(self, norm: RMSNorm) -> ops.Sublayer | None:
        """Norm, experts and residual sum as one kernel; None where single ops must do it."""
        if self._exchange is not None or self._summed_by is not None:
            return None
        shared = None
        if self.shared_expert is not None:
            weights = self.shared_expert.weights
            if weights is None:
                return None
            shared = ops.ExpertWeights(*weights, num_experts=1)
        return ops.moe_sublayer(
            norm.spec, self._router_weight, self._routed, self._routing, shared, self.load
        )
