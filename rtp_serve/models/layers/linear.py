"""Linear maps as replaceable objects: dense here; quantised, LoRA or sharded ones look the same."""

from typing import Protocol

from rtp_serve import ops
from rtp_serve.native.rank_group import RankGroup
from rtp_serve.ops.tensor import Tensor
from rtp_serve.parallel.collectives import Collectives
from rtp_serve.parallel.shared_memory import SharedMemory


class Linear(Protocol):
    """y = f(x), row by row: a row's result must not depend on the other rows."""

    def __call__(self, x: Tensor) -> Tensor:
        """x [num_tokens, in_features] → [num_tokens, out_features], of x's dtype or float32."""
        ...


class PackedLinear:
    """x @ weightᵀ + bias with a packed weight."""

    def __init__(self, weight: ops.PackedWeight, out_dtype: str | None = None) -> None:
        """`out_dtype` of None keeps x's dtype."""
        self.weight = weight
        self._out_dtype = out_dtype

    def __call__(self, x: Tensor) -> Tensor:
        return ops.linear(x, self.weight, out_dtype=self._out_dtype)


class SummedLinear:
    """x @ weightᵀ + bias where each rank has some columns of x and of the weight.

    The ranks' sums are added up in float32 and left so: the residual stream rounds once.
    """

    def __init__(self, weight: ops.PackedWeight, collectives: Collectives) -> None:
        self.weight = weight
        self._collectives = collectives

    @property
    def group(self) -> RankGroup | None:
        """What kernels add up the sums through; None where the ranks share no memory."""
        collectives = self._collectives
        return collectives.group if isinstance(collectives, SharedMemory) else None

    def __call__(self, x: Tensor) -> Tensor:
        sums = ops.linear(x, self.weight, out_dtype="float32")
        self._collectives.all_reduce(sums)
        return sums


def final_product(linear: Linear) -> tuple[ops.PackedWeight, RankGroup | None] | None:
    """The weight of a product that ends a sublayer, and the group that adds it up if it is one of
    several ranks'; None where no kernel can do it."""
    if isinstance(linear, PackedLinear):
        return linear.weight, None
    if isinstance(linear, SummedLinear) and linear.group is not None:
        return linear.weight, linear.group
    return None
