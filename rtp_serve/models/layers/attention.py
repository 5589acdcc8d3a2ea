"""Causal self-attention over paged keys and values."""

from dataclasses import dataclass

from torch import Tensor

from rtp_serve import ops
from rtp_serve.models.layers.linear import Linear
from rtp_serve.models.layers.norm import RMSNorm
from rtp_serve.models.layers.rotary import RotaryEmbedding


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


@dataclass(frozen=True, slots=True)
class HeadShape:
    """How the fused qkv output splits into heads."""

    num_heads: int
    num_kv_heads: int
    head_dim: int


class Attention:
    """qkv → (q/k norm) → rope → KV write → attention → output projection."""

    def __init__(
        self,
        heads: HeadShape,
        qkv_proj: Linear,
        o_proj: Linear,
        rotary: RotaryEmbedding,
        q_norm: RMSNorm | None = None,
        k_norm: RMSNorm | None = None,
    ) -> None:
        self.qkv_proj = qkv_proj
        self.o_proj = o_proj
        self._heads = heads
        self._rotary = rotary
        self._q_norm = q_norm
        self._k_norm = k_norm
        self._scale = heads.head_dim**-0.5

    def __call__(
        self, x: Tensor, positions: Tensor, kv: tuple[Tensor, Tensor], metadata: AttentionMetadata
    ) -> Tensor:
        """x [num_tokens, hidden_size] → the same shape.

        `kv` is the layer's (key, value) cache; its dtype is the KV format.
        """
        query, key, value = self._split(self.qkv_proj(x))
        if self._q_norm is not None and self._k_norm is not None:
            query, key = self._q_norm(query), self._k_norm(key)
        self._rotary(query, key, positions)
        key_cache, value_cache = kv
        ops.write_kv(key, value, key_cache, value_cache, metadata.slots)
        attended = ops.paged_attention(
            query,
            key_cache,
            value_cache,
            metadata.block_tables,
            metadata.query_start_loc,
            metadata.seq_lens,
            self._scale,
            window=metadata.window,
            ancestor_mask=metadata.ancestor_mask,
        )
        return self.o_proj(attended.view(x.shape[0], -1))

    def _split(self, qkv: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """[num_tokens, all heads · head_dim] → three views [num_tokens, heads, head_dim]."""
        shape = self._heads
        heads = qkv.view(qkv.shape[0], -1, shape.head_dim)
        sizes = (shape.num_heads, shape.num_kv_heads, shape.num_kv_heads)
        query, key, value = heads.split_with_sizes(sizes, dim=1)
        return query, key, value
