"""Takes the parts of a weight as they arrive, in any order, and puts each where it ends up.

Nothing is kept on the way: rows are converted and packed straight from the staging memory into the
weight's own. A collector counts what is missing, and gives the weight when nothing is.
"""

import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch

from rtp_serve import ops
from rtp_serve.models.weights import TensorSpec, WeightSpec
from rtp_serve.ops.tensor import Device, DType, Tensor

_SERIAL_ELEMENTS = 1 << 15
"""torch converts no more than this on the calling thread alone; more would start a team for it."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where a tensor of the checkpoint goes: rows of a collector's weight or bias."""

    collector: "Collector"
    target: Callable[[int, Tensor], None]
    tensor: TensorSpec
    first_row: int
    """Of the tensor's wanted rows in the weight."""

    def put(self, row: int, rows: Tensor) -> None:
        """Take what is wanted of the whole tensor's rows from `row` on; the memory of `rows` may be
        reused afterwards."""
        wanted_begin, wanted_end = self.tensor.row_range
        begin, end = max(row, wanted_begin), min(row + len(rows), wanted_end)
        if begin >= end:
            return
        wanted = rows[begin - row : end - row]
        if self.tensor.columns is not None:
            wanted = wanted[:, slice(*self.tensor.columns)]
        self.target(self.first_row + begin - wanted_begin, wanted)
        self.collector.count(wanted.numel())


class Collector:
    """One weight of the model on its way."""

    def __init__(self, spec: WeightSpec, dtype: DType, device: Device | None) -> None:
        self.spec = spec
        self._lock = threading.Lock()
        self._num_missing = sum(map(_num_elements, spec.tensors))
        self._dtype = dtype
        if spec.is_matrix:
            self._packer = ops.WeightPacker(spec.num_rows, spec.num_columns, dtype, device)
        else:
            self._vector = torch.empty(spec.num_rows, dtype=dtype, device=device)
        num_biases = sum(tensor.num_rows for tensor in spec.biases)
        self._bias = torch.empty(num_biases, dtype=dtype, device=device) if spec.biases else None

    def places(self) -> Iterator[tuple[str, Place]]:
        """Each tensor that the weight is made of, and where it goes."""
        target = self._put_matrix if self.spec.is_matrix else _filling(self._vector)
        yield from self._stacked(self.spec.parts, target)
        if self._bias is not None:
            yield from self._stacked(self.spec.biases, _filling(self._bias))

    def count(self, num_elements: int) -> None:
        """So many more are in their place."""
        with self._lock:
            self._num_missing -= num_elements
            assert self._num_missing >= 0, f"{self.spec.path}: more arrived than belongs to it"

    @property
    def is_complete(self) -> bool:
        return self._num_missing == 0

    def matrix(self) -> ops.PackedWeight:
        """Of a complete collector of a matrix."""
        assert self.is_complete, f"{self.spec.path}: {self._num_missing} elements are missing"
        weight = self._packer.weight(self._bias)
        if self.spec.has_screen:
            weight = ops.with_screen(weight)
        if self.spec.has_codes:
            weight = ops.with_codes(weight)
            del self._packer  # and the memory of the weight as it was
        return weight

    def vector(self) -> Tensor:
        """Of a complete collector of a vector."""
        assert self.is_complete, f"{self.spec.path}: {self._num_missing} elements are missing"
        return self._vector

    def _stacked(
        self, tensors: tuple[TensorSpec, ...], target: Callable[[int, Tensor], None]
    ) -> Iterator[tuple[str, Place]]:
        first_row = 0
        for tensor in tensors:
            yield tensor.name, Place(self, target, tensor, first_row)
            first_row += tensor.num_rows

    def _put_matrix(self, first_row: int, rows: Tensor) -> None:
        if rows.dtype == self._dtype:
            self._packer.put(first_row, rows)
            return
        step = max(1, _SERIAL_ELEMENTS // max(1, rows.shape[1]))
        for row in range(0, len(rows), step):
            self._packer.put(first_row + row, rows[row : row + step].to(self._dtype))


def _num_elements(tensor: TensorSpec) -> int:
    return tensor.num_rows * (tensor.num_columns if len(tensor.shape) == 2 else 1)


def _filling(vector: Tensor) -> Callable[[int, Tensor], None]:
    """Puts elements into `vector`, converted to its type."""

    def fill(first: int, values: Tensor) -> None:
        vector[first : first + len(values)].copy_(values)

    return fill
