"""What attention must know of a step beside its queries."""

from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from rtp_serve.ops.tensor import Device, Tensor

ArrayT = TypeVar("ArrayT", NDArray[Any], Tensor)


@dataclass(frozen=True, slots=True)
class AttentionMetadata(Generic[ArrayT]):
    """Which tokens belong to which sequence and where their KV lies.

    Arrays on the host, or tensors on the model's device.
    """

    # [num_tokens], int64: slot each token's KV is written to; -1 is not written
    slots: ArrayT
    # [num_seqs, max_blocks], int32: block ids in order; rows are padded with the null block
    block_tables: ArrayT
    # [num_seqs + 1], int32: a sequence's tokens are [start[i], start[i + 1])
    query_start_loc: ArrayT
    # [num_seqs], int32: KV length with this step's tokens
    seq_lens: ArrayT
    # 0 attends to everything before; otherwise to this many last tokens
    window: int = 0
    # [num_tokens], int64: bit j says that the token sees token j of its sequence's step, itself
    # among them (a tree of draft tokens); 0, or None for all, is causal
    ancestor_mask: ArrayT | None = None

    @property
    def arguments(self) -> tuple[Any, ...]:
        """All of it, in the order in which compiled steps take it."""
        return (
            self.slots,
            self.block_tables,
            self.query_start_loc,
            self.seq_lens,
            self.window,
            self.ancestor_mask,
        )


def to_device(
    metadata: AttentionMetadata[NDArray[Any]], device: Device
) -> AttentionMetadata[Tensor]:
    """The same as tensors; on the CPU they share memory."""

    def tensor(array: NDArray[np.integer]) -> Tensor:
        return torch.from_numpy(array).to(device)

    mask = metadata.ancestor_mask
    return AttentionMetadata(
        slots=tensor(metadata.slots),
        block_tables=tensor(metadata.block_tables),
        query_start_loc=tensor(metadata.query_start_loc),
        seq_lens=tensor(metadata.seq_lens),
        window=metadata.window,
        ancestor_mask=None if mask is None else tensor(mask),
    )
