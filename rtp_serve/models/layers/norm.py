"""RMS normalisation."""

from torch import Tensor

from rtp_serve import ops


class RMSNorm:
    """x / rms(x) · weight over the last dimension."""

    def __init__(self, weight: Tensor, eps: float) -> None:
        self._weight = weight
        self._eps = eps

    def __call__(self, x: Tensor) -> Tensor:
        """x [num_tokens, size] or [num_tokens, heads, size] → the same shape and dtype."""
        return ops.rms_norm(x, self._weight, self._eps)

    def add(self, x: Tensor, residual: Tensor) -> Tensor:
        """`residual` += x in place, then the norm of it. Both [num_tokens, size]."""
        return ops.add_rms_norm(x, residual, self._weight, self._eps)
