"""RMS normalisation."""

from torch import Tensor

from rtp_serve import ops


class RMSNorm:
    """x / rms(x) · weight over the last dimension."""

    def __init__(self, weight: Tensor, eps: float) -> None:
        self.spec = ops.Norm(weight, eps)

    def __call__(self, x: Tensor) -> Tensor:
        """x [num_tokens, size] or [num_tokens, heads, size] → the same shape and dtype."""
        return ops.rms_norm(x, self.spec.weight, self.spec.eps)
