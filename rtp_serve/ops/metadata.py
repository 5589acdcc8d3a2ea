"""What attention must know of a step beside its queries."""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, slots=True)
class AttentionMetadata:
    """Which tokens belong to which sequence and where their KV lies. All on the model's device."""

    # [num_tokens], int64: slot each token's KV is written to; -1 is not written
    slots: Tensor
    # [num_seqs, max_blocks], int32: block ids in order; rows are padded with the null block
    block_tables: Tensor
    # [num_seqs + 1], int32: a sequence's tokens are [start[i], start[i + 1])
    query_start_loc: Tensor
    # [num_seqs], int32: KV length with this step's tokens
    seq_lens: Tensor
    # 0 attends to everything before; otherwise to this many last tokens
    window: int = 0
    # [num_tokens], int64: bit j says that the token sees token j of its sequence's step, itself
    # among them (a tree of draft tokens); 0, or None for all, is causal
    ancestor_mask: Tensor | None = None
