"""Linear layers and embeddings over packed weights. Knows nothing of layers or models.

A row of `linear` has the same bits whatever the number of rows, its place among them and the number
of threads: each output is one sum over k in ascending order. Packed layout of the compiled kernels,
the same at every instruction set, zero beyond N and K:

    bfloat16   [ceil(N / 32), ceil(K / 2), 32, 2]    strips of 32 outputs, k in pairs
    float32    [ceil(N / 32), K, 32]

On CPUs where they are read as fast, bfloat16 weights are coded, without loss, in three quarters of
that (kernels/csrc/cpu/coded_strip.h): uint8 strips, and a list of the weights that do not fit them.
A weight of which the largest output alone is wanted may have a screen as well, an eight-bit copy
that rules out most outputs (kernels/csrc/cpu/screen.h).

The torch reference, which also serves other devices, holds the plain [N, K] weight.
"""

from dataclasses import dataclass, field
from importlib import import_module
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from rtp_serve.ops import sampling
from rtp_serve.ops.dispatch import Backend, backend
from rtp_serve.ops.host_array import Array, HostArray, as_tensor, dlpack, dtype_name
from rtp_serve.ops.reference import rms_norm
from rtp_serve.ops.tensor import Device, DType, Tensor

if TYPE_CHECKING:
    from rtp_kernels import _C

STRIP_OUTPUTS = 32
"""Weight rows that lie side by side in the packed layout."""

_MAX_ESCAPES = 0.02
"""Of a coded weight's elements. Of trained ones some in ten thousand are."""

PACKED_LAYOUT_VERSION = 1
"""Raised with every change of the packed layout or its codes or screen: files of them outlive a
build."""


@dataclass(frozen=True, slots=True, eq=False)
class PackedWeight:
    """A weight [N, K] as `linear` and `embedding` read it."""

    stored: Array
    """Contiguous, of the weight's dtype, shaped as the module's docstring draws it; of a coded one
    uint8, shaped by `coded_shape`."""

    bias: Array | None
    """[N], float32."""

    num_rows: int
    """N, the outputs."""

    num_cols: int
    """K, the inputs."""

    kernel: "_C.LinearWeight | None" = field(repr=False)
    """The compiled kernels' view of it all; None where the reference serves."""

    screen: Array | None = None
    """uint8, shaped by `screen_shape`: a copy of half the size, by which `greedy` rules out most
    outputs."""

    escapes: Array | None = None
    """[*], bfloat16: of a weight that is coded."""

    @property
    def data(self) -> Tensor:
        """`stored` as a tensor."""
        return as_tensor(self.stored)

    @property
    def dtype(self) -> DType:
        """bfloat16 or float32."""
        return torch.bfloat16 if self.escapes is not None else self.data.dtype

    @property
    def dtype_name(self) -> str:
        """The same without torch."""
        return "bfloat16" if self.escapes is not None else dtype_name(self.stored.dtype)


@dataclass(frozen=True, slots=True)
class Norm:
    """An RMS norm's weight [size], of the model's dtype."""

    weight: Array
    eps: float


def packed_shape(num_rows: int, num_cols: int, dtype: str | DType) -> tuple[int, ...]:
    """The shape of `PackedWeight.data` in the compiled kernels' layout."""
    strips = -(-num_rows // STRIP_OUTPUTS)
    if dtype_name(dtype) == "bfloat16":
        return strips, -(-num_cols // 2), STRIP_OUTPUTS, 2
    return strips, num_cols, STRIP_OUTPUTS


def screen_shape(num_rows: int, num_cols: int) -> tuple[int, int]:
    """The shape of `PackedWeight.screen`: by strip of outputs, each weight in eight bits, and three
    numbers an output."""
    strips = -(-num_rows // STRIP_OUTPUTS)
    return strips, STRIP_OUTPUTS * (-(-num_cols // 4) * 4 + 3 * 4)


def has_fast_screen(dtype: str | DType) -> bool:
    """Whether `greedy` is faster where a weight of this type has a screen."""
    return _has_fast(dtype, "has_fast_screen")


def with_screen(weight: PackedWeight) -> PackedWeight:
    """The same bfloat16 weight, without bias, with a screen."""
    num_rows, num_cols = weight.num_rows, weight.num_cols
    screen = torch.empty(screen_shape(num_rows, num_cols), dtype=torch.uint8)
    kernels = import_module("rtp_kernels._C")
    kernels.make_screen(screen, dlpack(weight.stored), num_rows, num_cols)
    return from_packed(weight.stored, weight.bias, num_rows, num_cols, screen)


def coded_shape(num_rows: int, num_cols: int) -> tuple[int, int]:
    """The shape of a coded weight's strips."""
    groups = -(-num_cols // 4)
    head_bytes = 24 + -(-groups // 64) * 8
    return -(-num_rows // STRIP_OUTPUTS), -(-head_bytes // 64) * 64 + groups * 6 * STRIP_OUTPUTS


def has_fast_codes(dtype: str | DType) -> bool:
    """Whether products are faster with weights of this type coded."""
    return _has_fast(dtype, "has_fast_codes")


def _has_fast(dtype: str | DType, question: str) -> bool:
    """What the kernels answer for this CPU; only bfloat16 has other forms."""
    if dtype_name(dtype) != "bfloat16" or backend() is Backend.REFERENCE:
        return False
    answer: bool = getattr(import_module("rtp_kernels._C"), question)()
    return answer


def with_codes(weight: PackedWeight) -> PackedWeight:
    """The same bfloat16 weight, coded; as it is, if too many of its elements would not fit."""
    num_rows, num_cols = weight.num_rows, weight.num_cols
    shape, stored = coded_shape(num_rows, num_cols), dlpack(weight.stored)
    kernels = import_module("rtp_kernels._C")
    counts = np.empty(shape[0], np.int64)
    kernels.count_escapes(counts, stored, num_rows, num_cols)
    num_escapes = int(counts.sum())
    if num_escapes > num_rows * num_cols * _MAX_ESCAPES:
        return weight
    coded = torch.empty(shape, dtype=torch.uint8)
    # One more than there are: no array is empty.
    escapes = torch.zeros(num_escapes + 1, dtype=torch.bfloat16)
    first = np.cumsum(counts) - counts
    kernels.code_weight(coded, escapes, first, dlpack(weight.stored), num_rows, num_cols)
    return from_packed(coded, weight.bias, num_rows, num_cols, weight.screen, escapes)


def pack_weight(weight: Tensor, bias: Tensor | None = None) -> PackedWeight:
    """Packs `weight` [N, K], bfloat16 or float32, into new memory; `bias` is [N], of any float."""
    num_rows, num_cols = weight.shape
    if bias is not None:
        assert bias.shape == (num_rows,), f"bias {tuple(bias.shape)} for {num_rows} outputs"
        bias = bias.float().contiguous()
    if not weight.is_cpu or backend() is Backend.REFERENCE:
        return PackedWeight(weight.contiguous(), bias, num_rows, num_cols, kernel=None)
    kernels = import_module("rtp_kernels._C")
    data = torch.empty(packed_shape(num_rows, num_cols, weight.dtype), dtype=weight.dtype)
    kernels.pack_weight(data, weight)
    return from_packed(data, bias, num_rows, num_cols)


class WeightPacker:
    """A weight [N, K] that is filled by rows, in any order and from any thread."""

    def __init__(
        self, num_rows: int, num_cols: int, dtype: DType, device: Device | None = None
    ) -> None:
        """Memory for the whole weight, not touched yet. `device` None is the CPU."""
        is_cpu = device is None or device.type == "cpu"
        is_compiled = is_cpu and backend() is Backend.COMPILED
        self._kernels = import_module("rtp_kernels._C") if is_compiled else None
        self._num_rows, self._num_cols = num_rows, num_cols
        shape = packed_shape(num_rows, num_cols, dtype) if is_compiled else (num_rows, num_cols)
        self._data = torch.empty(shape, dtype=dtype, device=device)

    def put(self, first_row: int, rows: Tensor) -> None:
        """Copy `rows` [n, K], of the weight's dtype and on the CPU, to `first_row` and after."""
        if self._kernels is None:
            self._data[first_row : first_row + len(rows)].copy_(rows)
        else:
            self._kernels.pack_rows(self._data, rows, first_row, self._num_rows)

    def weight(self, bias: Tensor | None = None) -> PackedWeight:
        """The weight, once every row has been put; `bias` is [N], of any float."""
        if bias is not None:
            assert bias.shape == (self._num_rows,), f"bias {tuple(bias.shape)} for {self._num_rows}"
            bias = bias.float().contiguous()
        if self._kernels is None:
            return PackedWeight(self._data, bias, self._num_rows, self._num_cols, kernel=None)
        return from_packed(self._data, bias, self._num_rows, self._num_cols)


def from_packed(
    data: Array,
    bias: Array | None,
    num_rows: int,
    num_cols: int,
    screen: Array | None = None,
    escapes: Array | None = None,
) -> PackedWeight:
    """A weight from memory that already has the packed layout, as from a mapped file; no copy. With
    `escapes` it is coded."""
    kernels = import_module("rtp_kernels._C")
    kernel = kernels.LinearWeight(data, bias, num_rows, num_cols, screen, escapes)
    return PackedWeight(data, bias, num_rows, num_cols, kernel, screen, escapes)


def linear(x: Tensor, weight: PackedWeight, out_dtype: str | DType | None = None) -> Tensor:
    """x [M, K] times the weight's transpose, plus its bias: [M, N].

    `x` has the weight's dtype; its rows may lie apart. `out_dtype` is that dtype or float32, which
    gives the sums unrounded. Raises TypeError for another dtype, ValueError for another shape.
    """
    out_dtype = getattr(torch, out_dtype) if isinstance(out_dtype, str) else out_dtype or x.dtype
    _check_operands(x, weight, out_dtype)
    if weight.kernel is None:
        return _reference_linear(x, weight, out_dtype)
    num_rows = x.shape[0]
    out = torch.empty((num_rows, weight.num_rows), dtype=out_dtype)
    is_out_f32 = out_dtype == torch.float32
    weight.kernel.linear(out.data_ptr(), is_out_f32, x.data_ptr(), num_rows, x.stride(0))
    return out


def logits(
    x: Array, rows: NDArray[np.int64], norm: Norm, weight: PackedWeight
) -> NDArray[np.float32]:
    """`linear`, unrounded, of the RMS norms of rows [m] of x [num_rows, K]: [m, N], on the host."""
    _check_input(x, weight)
    if weight.kernel is None:
        hidden = as_tensor(x)
        device_rows = torch.from_numpy(rows).to(hidden.device)
        chosen = rms_norm(hidden[device_rows], as_tensor(norm.weight), norm.eps)
        sums: NDArray[np.float32] = _reference_linear(chosen, weight, torch.float32).cpu().numpy()
        return sums
    out = np.empty((len(rows), weight.num_rows), np.float32)
    weight.kernel.logits(out, *_normed(x, rows, norm))
    return out


def greedy(
    x: Array, rows: NDArray[np.int64], norm: Norm, weight: PackedWeight
) -> NDArray[np.int32]:
    """`sampling.greedy` of these logits: [m]. With a screen few of them are computed."""
    if weight.kernel is None:
        return sampling.greedy(logits(x, rows, norm, weight))
    _check_input(x, weight)
    out = np.empty(len(rows), np.int32)
    weight.kernel.greedy(out, *_normed(x, rows, norm))
    return out


def _normed(
    x: Array, rows: NDArray[np.int64], norm: Norm
) -> tuple[int, int, int, NDArray[np.int64], int, float]:
    """Rows of x under a norm, as the kernels take them."""
    num_rows, num_cols = x.shape
    assert dtype_name(norm.weight.dtype) == dtype_name(x.dtype)
    assert norm.weight.shape == (num_cols,)
    return x.data_ptr(), num_rows, x.stride(0), rows, norm.weight.data_ptr(), norm.eps


def embedding(token_ids: NDArray[np.int64], weight: PackedWeight) -> Array:
    """Rows of the unpacked weight: token_ids [n], each in [0, N), give [n, K], of the weight's
    kind of array."""
    if weight.kernel is None:
        device_ids = torch.from_numpy(token_ids).to(weight.data.device)
        return torch.nn.functional.embedding(device_ids, weight.data)
    shape, stored = (len(token_ids), weight.num_cols), weight.stored
    out: Array
    if isinstance(stored, HostArray):
        out = HostArray.empty(shape, weight.dtype_name)
    else:
        out = torch.empty(shape, dtype=weight.dtype)
    weight.kernel.gather_rows(out.data_ptr(), token_ids)
    return out


def _check_operands(x: Tensor, weight: PackedWeight, out_dtype: DType) -> None:
    if out_dtype not in (x.dtype, torch.float32):
        raise TypeError(f"linear: out_dtype must be {x.dtype} or torch.float32, got {out_dtype}")
    _check_input(x, weight)


def _check_input(x: Array, weight: PackedWeight) -> None:
    shape = x.shape
    if dtype_name(x.dtype) != weight.dtype_name:
        raise TypeError(f"linear: x must be {weight.dtype_name} like its weight, got {x.dtype}")
    if x.is_cpu != weight.stored.is_cpu:
        raise ValueError("linear: x must be on the device of its weight")
    if len(shape) != 2 or shape[1] != weight.num_cols:
        raise ValueError(f"linear: x must be [*, {weight.num_cols}], got {list(shape)}")
    if x.stride(1) != 1 and weight.num_cols > 1:
        raise ValueError("linear: the elements of a row of x must lie one after the other")


def _reference_linear(x: Tensor, weight: PackedWeight, out_dtype: DType) -> Tensor:
    """A single row goes twice: on the CPU torch rounds it in another order than rows of a batch."""
    rows = x.shape[0]
    if x.is_cpu and rows == 1:
        x = x.expand(2, -1)
    data = weight.data
    if out_dtype == torch.float32:
        x, data = x.float(), data.float()
    bias = as_tensor(weight.bias).to(data.dtype) if weight.bias is not None else None
    return torch.nn.functional.linear(x, data, bias)[:rows]
