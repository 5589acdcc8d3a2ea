"""torch's types for annotations: a process that never asks torch for anything need not run it."""

from typing import TYPE_CHECKING, Any, TypeAlias

if TYPE_CHECKING:
    import torch

    Tensor: TypeAlias = torch.Tensor
    Device: TypeAlias = torch.device
    DType: TypeAlias = torch.dtype
else:
    Tensor = Device = DType = Any
