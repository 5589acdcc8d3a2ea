"""The gated feed-forward block."""

from rtp_serve import ops
from rtp_serve.models.layers.linear import Linear, PackedLinear, final_product
from rtp_serve.models.layers.norm import RMSNorm
from rtp_serve.ops.tensor import Tensor


class GatedMLP:
    """down(silu(gate(x)) · up(x)), gate and up as one linear."""

    def __init__(self, gate_up_proj: Linear, down_proj: Linear) -> None:
        self.gate_up_proj = gate_up_proj
        self.down_proj = down_proj

    def __call__(self, x: Tensor) -> Tensor:
        """x [num_tokens, hidden_size] → the same shape."""
        return self.down_proj(ops.silu_and_mul(self.gate_up_proj(x)))

    @property
    def weights(self) -> tuple[ops.PackedWeight, ops.PackedWeight] | None:
        """Of gate and up, and of down; None where one of the two is no packed linear."""
        gate_up, down = self.gate_up_proj, self.down_proj
        if not (isinstance(gate_up, PackedLinear) and isinstance(down, PackedLinear)):
            return None
        return gate_up.weight, down.weight

    def sublayer(self, norm: RMSNorm) -> ops.Sublayer | None:
        """Norm, MLP and residual sum as one kernel; None where single ops must do it."""
        gate_up, down = self.gate_up_proj, final_product(self.down_proj)
        if down is None or not isinstance(gate_up, PackedLinear):
            return None
        down_weight, group = down
        return ops.mlp_sublayer(norm.spec, gate_up.weight, down_weight, group)
