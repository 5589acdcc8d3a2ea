"""Causal self-attention over paged keys and values."""

from rtp_serve import ops
from rtp_serve.models.layers.linear import Linear, PackedLinear, final_product
from rtp_serve.models.layers.norm import RMSNorm
from rtp_serve.models.layers.rotary import RotaryEmbedding
from rtp_serve.ops.tensor import Tensor


class Attention:
    """qkv → (q/k norm) → rope → KV write → attention → output projection."""

    def __init__(
        self,
        heads: ops.HeadShape,
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

    def __call__(
        self,
        x: Tensor,
        positions: Tensor,
        kv: tuple[Tensor, Tensor],
        metadata: ops.AttentionMetadata,
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
            self._heads.scale,
            window=metadata.window,
            ancestor_mask=metadata.ancestor_mask,
        )
        return self.o_proj(attended.view(x.shape[0], -1))

    def sublayer(self, norm: RMSNorm, layer: int) -> ops.Sublayer | None:
        """Norm, attention and residual sum as one kernel; None where single ops must do it."""
        qkv, o = self.qkv_proj, final_product(self.o_proj)
        if o is None or not isinstance(qkv, PackedLinear):
            return None
        head_norms = None
        if self._q_norm is not None and self._k_norm is not None:
            head_norms = (self._q_norm.spec, self._k_norm.spec)
        o_weight, group = o
        rope = self._rotary.rope
        return ops.attention_sublayer(
            layer, self._heads, norm.spec, qkv.weight, o_weight, rope, head_norms, group
        )

    def _split(self, qkv: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """[num_tokens, all heads · head_dim] → three views [num_tokens, heads, head_dim]."""
        shape = self._heads
        heads = qkv.view(qkv.shape[0], -1, shape.head_dim)
        sizes = (shape.num_heads, shape.num_kv_heads, shape.num_kv_heads)
        query, key, value = heads.split_with_sizes(sizes, dim=1)
        return query, key, value
