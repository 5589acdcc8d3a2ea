"""What one rank of a tensor-parallel model wants of a weight, as data. No memory, no arithmetic.

A weight whose outputs are divided among ranks is divided by rows, part by part: rank 1 of 2 has the
lower half of q, of k and of v. One whose inputs are divided, such as the product that ends a
sublayer, is divided by columns, and the ranks' sums are added up.
"""

from collections.abc import Iterable
from dataclasses import replace

from rtp_serve.models.weights import TensorSpec, WeightSpec

_SUMMED = ("o_proj", "down_proj")
"""The products that end a sublayer."""


def shard_specs(specs: Iterable[WeightSpec], rank: int, world_size: int) -> list[WeightSpec]:
    """A rank's part of a decoder: each matrix divided, vectors whole."""

    def shard(spec: WeightSpec) -> WeightSpec:
        if not spec.is_matrix:
            return spec
        divide = shard_columns if spec.path.endswith(_SUMMED) else shard_rows
        return divide(spec, rank, world_size)

    return [shard(spec) for spec in specs]


def shard_rows(spec: WeightSpec, rank: int, world_size: int) -> WeightSpec:
    """Rank's rows of each part and of its bias; near-equal, in order of rank."""

    def shard(tensor: TensorSpec) -> TensorSpec:
        return replace(tensor, rows=_share(tensor.shape[0], rank, world_size))

    return replace(spec, parts=tuple(map(shard, spec.parts)), biases=tuple(map(shard, spec.biases)))


def shard_columns(spec: WeightSpec, rank: int, world_size: int) -> WeightSpec:
    """Rank's columns of each part. The bias is rank 0's, for it is added once."""
    parts = tuple(
        replace(tensor, columns=_share(tensor.shape[1], rank, world_size)) for tensor in spec.parts
    )
    return replace(spec, parts=parts, biases=spec.biases if rank == 0 else ())


def _share(size: int, rank: int, world_size: int) -> tuple[int, int]:
    assert 0 <= rank < world_size, f"rank {rank} of {world_size}"
    assert size >= world_size, f"{size} rows or columns for {world_size} ranks"
    return size * rank // world_size, size * (rank + 1) // world_size
