"""Takes the parts of a weight as they arrive, in any order, and puts each where it ends up.

Nothing is kept on the way: rows are converted and packed straight from the staging memory into the
weight's own. A collector counts what is missing, and gives the weight when nothing is.
"""

import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor

from rtp_serve import ops
from rtp_serve.models.weights import TensorSpec, WeightSpec

_SERIAL_ELEMENTS = 1 << 15
"""torch converts no more than this on the calling thread alone; more would start a team for it."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where a tensor of the checkpoint goes: rows of a collector's weight or bias."""

    collector: "Collector"
    target: Callable[[int, Tensor], None]
    first_row: int

    def put(self, row: int, rows: Tensor) -> None:
        """Take rows of the tensor, from its row `row` on. `rows` may be reused afterwards."""
        self.target(self.first_row + row, rows)
        self.collector.count(rows.numel())


class Collector:
    """One weight of the model on its way."""

    def __init__(self, spec: WeightSpec, dtype: torch.dtype, device: torch.device | None) -> None:
        self.spec = spec
        self._lock = threading.Lock()
        self._num_missing = sum(prod(tensor.shape) for tensor in spec.tensors)
        self._dtype = dtype
        num_rows = _num_rows(spec.parts)
        if spec.is_matrix:
            num_cols = spec.parts[0].shape[1]
            self._packer = ops.WeightPacker(num_rows, num_cols, dtype, device)
        else:
            self._vector = torch.empty(num_rows, dtype=dtype, device=device)
        self._bias = (
            torch.empty(_num_rows(spec.biases), dtype=dtype, device=device) if spec.biases else None
        )

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
        return self._packer.weight(self._bias)

    def vector(self) -> Tensor:
        """Of a complete collector of a vector."""
        assert self.is_complete, f"{self.spec.path}: {self._num_missing} elements are missing"
        return self._vector

    def _stacked(
        self, tensors: tuple[TensorSpec, ...], target: Callable[[int, Tensor], None]
    ) -> Iterator[tuple[str, Place]]:
        first_row = 0
        for tensor in tensors:
            yield tensor.name, Place(self, target, first_row)
            first_row += tensor.shape[0]

    def _put_matrix(self, first_row: int, rows: Tensor) -> None:
        if rows.dtype == self._dtype:
            self._packer.put(first_row, rows)
            return
        step = max(1, _SERIAL_ELEMENTS // max(1, rows.shape[1]))
        for row in range(0, len(rows), step):
            self._packer.put(first_row + row, rows[row : row + step].to(self._dtype))


def _num_rows(tensors: tuple[TensorSpec, ...]) -> int:
    return sum(tensor.shape[0] for tensor in tensors)


def _filling(vector: Tensor) -> Callable[[int, Tensor], None]:
    """Puts elements into `vector`, converted to its type."""

    def fill(first: int, values: Tensor) -> None:
        vector[first : first + len(values)].copy_(values)

    return fill
