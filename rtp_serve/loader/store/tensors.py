"""A model's weights ↔ the tensors of a file of the store."""

import hashlib
import mmap
from collections.abc import Iterator, Sequence

from rtp_serve import ops
from rtp_serve.errors import CorruptWeights
from rtp_serve.loader.store.format import Header, Kind, TensorEntry
from rtp_serve.models.weights import Weights, WeightSpec


def specs_digest(specs: Sequence[WeightSpec]) -> str:
    """Changes with every name, shape and order of what is stacked."""
    return hashlib.blake2b(repr(tuple(specs)).encode(), digest_size=16).hexdigest()


def planned_tensors(specs: Sequence[WeightSpec], dtype: str) -> list[TensorEntry]:
    """What a file of these weights holds, in order; offsets and digests are still to come."""
    return list(_planned(specs, dtype))


def _planned(specs: Sequence[WeightSpec], dtype: str) -> Iterator[TensorEntry]:
    for spec in specs:
        if spec.is_matrix:
            shape = ops.packed_shape(*_matrix_size(spec), dtype)
            yield _entry(spec, "matrix", dtype, shape)
            if spec.biases:
                yield _entry(spec, "bias", "float32", (spec.num_rows,))
            if spec.has_screen:
                yield _entry(spec, "screen", "uint8", ops.screen_shape(*_matrix_size(spec)))
        else:
            yield _entry(spec, "vector", dtype, (spec.num_rows,))


def buffers(weights: Weights, tensors: Sequence[TensorEntry]) -> Iterator[memoryview]:
    """Each tensor's bytes where they are in memory."""
    for entry in tensors:
        array = _find(weights, entry)
        assert tuple(array.shape) == entry.shape, f"{entry.path} is {list(array.shape)}"
        assert ops.dtype_name(array.dtype) == entry.dtype, f"{entry.path} is {array.dtype}"
        yield ops.array_bytes(array)


def map_weights(descriptor: int, header: Header, specs: Sequence[WeightSpec]) -> Weights:
    """Weights that lie in the file's pages, shared by everybody who maps it, for reading only.

    The mapping lives as long as any of its arrays. Raises CorruptWeights if the file lacks a
    tensor of `specs` or has it in another shape.
    """
    found = {(tensor.path, tensor.kind): tensor for tensor in header.tensors}
    for wanted in planned_tensors(specs, header.key.dtype):
        entry = found.get((wanted.path, wanted.kind))
        if entry is None or (entry.dtype, entry.shape) != (wanted.dtype, wanted.shape):
            raise CorruptWeights(f"it has no {wanted.kind} {wanted.path} {list(wanted.shape)}")
    payload = _map(descriptor, header.total_bytes)[header.payload_start :]
    views = {
        place: ops.HostArray.over(payload[entry.offset :], entry.shape, entry.dtype)
        for place, entry in found.items()
    }
    matrices = {
        spec.path: ops.from_packed(
            views[spec.path, "matrix"],
            views.get((spec.path, "bias")),
            *_matrix_size(spec),
            views.get((spec.path, "screen")),
        )
        for spec in specs
        if spec.is_matrix
    }
    vectors = {spec.path: views[spec.path, "vector"] for spec in specs if not spec.is_matrix}
    return Weights(matrices, vectors)


def _map(descriptor: int, num_bytes: int) -> memoryview:
    # Populated: one walk over the page cache instead of a fault for every few pages of a step.
    flags = mmap.MAP_SHARED | mmap.MAP_POPULATE
    try:
        return memoryview(mmap.mmap(descriptor, num_bytes, flags, mmap.PROT_READ))
    except ValueError as error:
        raise CorruptWeights("it became shorter") from error


def _find(weights: Weights, entry: TensorEntry) -> ops.Array:
    if entry.kind == "vector":
        return weights.vector(entry.path)
    weight = weights.matrix(entry.path)
    stored = {"matrix": weight.stored, "bias": weight.bias, "screen": weight.screen}[entry.kind]
    assert stored is not None, f"{entry.path} has no {entry.kind}"
    return stored


def _entry(spec: WeightSpec, kind: Kind, dtype: str, shape: tuple[int, ...]) -> TensorEntry:
    return TensorEntry(spec.path, kind, dtype, shape)


def _matrix_size(spec: WeightSpec) -> tuple[int, int]:
    return spec.num_rows, spec.num_columns
