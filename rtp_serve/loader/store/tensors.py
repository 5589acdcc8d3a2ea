"""A model's weights ↔ the tensors of a file of the store."""

import hashlib
import mmap
from collections.abc import Iterator, Mapping, Sequence

from rtp_serve import ops
from rtp_serve.errors import CorruptWeights
from rtp_serve.loader.store.format import Header, Kind, TensorEntry
from rtp_serve.models.weights import Weights, WeightSpec


def specs_digest(specs: Sequence[WeightSpec]) -> str:
    """Changes with every name, shape and order of what is stacked."""
    return hashlib.blake2b(repr(tuple(specs)).encode(), digest_size=16).hexdigest()


def stored_tensors(weights: Weights, specs: Sequence[WeightSpec]) -> list[TensorEntry]:
    """What a file of these weights holds, in order; offsets and digests are still to come."""
    return [
        TensorEntry(spec.path, kind, ops.dtype_name(array.dtype), tuple(array.shape))
        for spec in specs
        for kind, array in _arrays(weights, spec)
    ]


def _arrays(weights: Weights, spec: WeightSpec) -> Iterator[tuple[Kind, ops.Array]]:
    """Of one weight, those that there are."""
    if not spec.is_matrix:
        yield "vector", weights.vector(spec.path)
        return
    weight = weights.matrix(spec.path)
    yield "matrix" if weight.escapes is None else "coded", weight.stored
    optional: dict[Kind, ops.Array | None] = {
        "escapes": weight.escapes,
        "bias": weight.bias,
        "screen": weight.screen,
    }
    for kind, array in optional.items():
        if array is not None:
            yield kind, array


def buffers(weights: Weights, specs: Sequence[WeightSpec]) -> Iterator[memoryview]:
    """Each of these tensors' bytes where they are in memory."""
    for spec in specs:
        for _, array in _arrays(weights, spec):
            yield ops.array_bytes(array)


def map_weights(descriptor: int, header: Header, specs: Sequence[WeightSpec]) -> Weights:
    """Weights that lie in the file's pages, shared by everybody who maps it, for reading only.

    The mapping lives as long as any of its arrays. Raises CorruptWeights if the file lacks a
    tensor of `specs` or has it in another shape.
    """
    found = {(tensor.path, tensor.kind): tensor for tensor in header.tensors}
    for spec in specs:
        _check(spec, header.key.dtype, found)
    payload = _map(descriptor, header.total_bytes)[header.payload_start :]
    views = {
        place: ops.HostArray.over(payload[entry.offset :], entry.shape, entry.dtype)
        for place, entry in found.items()
    }
    matrices = {spec.path: _matrix(spec, views) for spec in specs if spec.is_matrix}
    vectors = {spec.path: views[spec.path, "vector"] for spec in specs if not spec.is_matrix}
    return Weights(matrices, vectors)


def _map(descriptor: int, num_bytes: int) -> memoryview:
    # Populated: one walk over the page cache instead of a fault for every few pages of a step.
    flags = mmap.MAP_SHARED | mmap.MAP_POPULATE
    try:
        return memoryview(mmap.mmap(descriptor, num_bytes, flags, mmap.PROT_READ))
    except ValueError as error:
        raise CorruptWeights("it became shorter") from error


def _check(spec: WeightSpec, dtype: str, found: Mapping[tuple[str, Kind], TensorEntry]) -> None:
    """That all of the weight is there, as it should be."""
    size = _matrix_size(spec) if spec.is_matrix else (spec.num_rows, 0)
    wanted: list[tuple[Kind, str, tuple[int, ...]]] = []
    if not spec.is_matrix:
        wanted.append(("vector", dtype, (spec.num_rows,)))
    elif spec.has_codes and (spec.path, "coded") in found:
        wanted.append(("coded", "uint8", ops.coded_shape(*size)))
        escapes = found.get((spec.path, "escapes"))
        wanted.append(("escapes", "bfloat16", escapes.shape[:1] if escapes else ()))
    else:
        wanted.append(("matrix", dtype, ops.packed_shape(*size, dtype)))
    if spec.biases:
        wanted.append(("bias", "float32", (spec.num_rows,)))
    if spec.has_screen:
        wanted.append(("screen", "uint8", ops.screen_shape(*size)))
    for kind, kind_dtype, shape in wanted:
        entry = found.get((spec.path, kind))
        if entry is None or (entry.dtype, entry.shape) != (kind_dtype, shape):
            raise CorruptWeights(f"it has no {kind} {spec.path} {list(shape)}")


def _matrix(spec: WeightSpec, views: Mapping[tuple[str, Kind], ops.HostArray]) -> ops.PackedWeight:
    coded = views.get((spec.path, "coded"))
    try:
        return ops.from_packed(
            views[spec.path, "matrix"] if coded is None else coded,
            views.get((spec.path, "bias")),
            *_matrix_size(spec),
            views.get((spec.path, "screen")),
            views.get((spec.path, "escapes")),
        )
    except ValueError as error:
        raise CorruptWeights(f"{spec.path}: {error}") from error


def _matrix_size(spec: WeightSpec) -> tuple[int, int]:
    return spec.num_rows, spec.num_columns
