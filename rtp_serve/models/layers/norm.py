"""RMS normalisation."""

from rtp_serve import ops
from rtp_serve.ops.tensor import Tensor


class RMSNorm:
    """x / rms(x) · weight over the last dimension."""

    def __init__(self, weight: ops.Array, eps: float) -> None:
        self.spec = ops.Norm(weight, eps)

    def __call__(self, x: Tensor) -> Tensor:
        """x [num_tokens, size] or [num_tokens, heads, size] → the same shape and dtype."""
        return ops.rms_norm(x, ops.as_tensor(self.spec.weight), self.spec.eps)
