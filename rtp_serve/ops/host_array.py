"""Arrays in the host's memory without torch, which takes 100 MiB a process to be there.

What the compiled kernels read and write themselves, weights, keys and values, the residual stream,
is held so; whoever computes with it otherwise asks for it as a tensor, in the same memory.
"""

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray

from rtp_serve.ops.tensor import DType, Tensor

_WORDS: dict[str, np.dtype[Any]] = {
    "bfloat16": np.dtype(np.int16),
    "float32": np.dtype(np.float32),
    "uint8": np.dtype(np.uint8),
}
_LINE_BYTES = 64


@dataclass(frozen=True, slots=True, eq=False)
class HostArray:
    """Contiguous; with what of a tensor's interface the compiled ops need."""

    words: NDArray[Any]
    """The elements, int16 for those of bfloat16, which numpy does not have."""

    dtype: str
    """bfloat16, float32 or uint8."""

    is_cpu = True

    @staticmethod
    def empty(shape: Sequence[int], dtype: str) -> "HostArray":
        """New memory, not touched yet, from the beginning of a cache line on."""
        num_bytes = math.prod(shape) * _WORDS[dtype].itemsize
        memory = np.empty(num_bytes + _LINE_BYTES, np.uint8)
        start = -_address(memory) % _LINE_BYTES
        return HostArray.over(memory[start : start + num_bytes], shape, dtype)

    @staticmethod
    def over(memory: Any, shape: Sequence[int], dtype: str) -> "HostArray":
        """In the memory of any buffer, from its start; it may be one for reading only."""
        words = np.frombuffer(memory, _WORDS[dtype], count=math.prod(shape))
        return HostArray(words.reshape(shape), dtype)

    @property
    def shape(self) -> tuple[int, ...]:
        return self.words.shape

    def stride(self, dim: int) -> int:
        """In elements."""
        return self.words.strides[dim] // self.words.itemsize

    def data_ptr(self) -> int:
        """The address of the first element."""
        return _address(self.words)

    def __dlpack__(self, **options: Any) -> Any:
        view = import_module("rtp_kernels._C").array(
            self.data_ptr(), self.shape, self.dtype, self.words
        )
        return view.__dlpack__(**options)

    def __dlpack_device__(self) -> tuple[int, int]:
        return 1, 0  # the CPU, in DLPack's numbers


def _address(array: NDArray[Any]) -> int:
    address: int = array.__array_interface__["data"][0]
    return address


Array: TypeAlias = Tensor | HostArray


def as_tensor(array: Array) -> Tensor:
    """The same memory as a tensor. Of memory for reading only, a write to it ends the process."""
    if not isinstance(array, HostArray):
        return array
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The given NumPy array is not writable")
        words = torch.from_numpy(array.words)
    dtype: DType = getattr(torch, array.dtype)
    return words.view(dtype)


def array_bytes(array: Array) -> memoryview:
    """The bytes of a contiguous array in the host's memory, where they are."""
    words = array.words if isinstance(array, HostArray) else array.view(torch.uint8).numpy()
    return words.data.cast("B")


def dtype_name(dtype: str | DType) -> str:
    """bfloat16 of torch.bfloat16, and of itself."""
    return str(dtype).removeprefix("torch.")


def dlpack(array: Array) -> Any:
    """What a kernel takes. Of a tensor its capsule: asking it for `__dlpack__` takes four times as
    long."""
    if isinstance(array, HostArray):
        return array
    return torch.to_dlpack(array)  # type: ignore[attr-defined]  # documented, in no stub of torch's
