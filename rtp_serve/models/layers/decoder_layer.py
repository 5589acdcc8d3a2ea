"""One layer of a decoder, put together from its weights."""

from rtp_serve import ops
from rtp_serve.config.model import ModelConfig, MoEConfig
from rtp_serve.kv_cache.tensors import KVCacheTensors
from rtp_serve.models.layers.attention import Attention
from rtp_serve.models.layers.expert_parallel import ExpertExchange, TokenSlices
from rtp_serve.models.layers.linear import Linear, PackedLinear, SummedLinear
from rtp_serve.models.layers.mlp import GatedMLP
from rtp_serve.models.layers.moe import SparseMLP
from rtp_serve.models.layers.norm import RMSNorm
from rtp_serve.models.layers.rotary import RotaryEmbedding
from rtp_serve.models.rank import Rank
from rtp_serve.models.weights import Weights
from rtp_serve.ops.tensor import Tensor


class DecoderLayer:
    """Attention and MLP, each behind a norm."""

    def __init__(
        self,
        config: ModelConfig,
        weights: Weights,
        index: int,
        rotary: RotaryEmbedding,
        rank: Rank,
    ) -> None:
        path = f"layers.{index}"

        def norm(name: str) -> RMSNorm:
            return RMSNorm(weights.vector(f"{path}.{name}"), config.rms_norm_eps)

        self._index = index
        # where the experts are on several groups of ranks
        self._slices: TokenSlices | None = None
        if config.is_sparse(index) and rank.part.shares_out_experts:
            self._slices = TokenSlices(rank.collectives)
        self.input_norm = norm("input_norm")
        o_proj = weights.matrix(f"{path}.attention.o_proj")
        self.attention = Attention(
            ops.HeadShape(rank.part.num_heads, rank.part.num_kv_heads, config.head_dim),
            weights.linear(f"{path}.attention.qkv_proj"),
            _partial(o_proj) if self._slices is not None else _summed(o_proj, rank),
            rotary,
            norm("q_norm") if config.qk_norm else None,
            norm("k_norm") if config.qk_norm else None,
        )
        self.mlp_norm = norm("mlp_norm")
        self.mlp = _make_mlp(config, weights, index, rank)

    def __call__(
        self,
        residual: Tensor,
        positions: Tensor,
        cache: KVCacheTensors,
        metadata: ops.AttentionMetadata[Tensor],
    ) -> None:
        """Add to `residual` [num_tokens, hidden_size] in place, op by op."""
        kv, slices = cache.layer(self._index), self._slices
        attended = self.attention(self.input_norm(residual), positions, kv, metadata)
        if slices is None:
            residual += attended
            residual += self.mlp(self.mlp_norm(residual))
        else:
            own = slices.own(residual).clone()
            own += slices.scatter_sum(attended)
            own += self.mlp(self.mlp_norm(own))
            residual.copy_(slices.gather(own, len(residual)))

    def sublayers(self) -> tuple[ops.Sublayer, ...]:
        """The layer as kernels; empty where it must be computed op by op."""
        if self._slices is not None:
            return ()
        attention = self.attention.sublayer(self.input_norm, self._index)
        mlp = self.mlp.sublayer(self.mlp_norm)
        return (attention, mlp) if attention is not None and mlp is not None else ()


def _make_mlp(
    config: ModelConfig, weights: Weights, index: int, rank: Rank
) -> GatedMLP | SparseMLP:
    path = f"layers.{index}.mlp"
    if config.moe is not None and config.is_sparse(index):
        return _make_sparse_mlp(config.moe, weights, path, rank)
    down = weights.matrix(f"{path}.down_proj")
    return GatedMLP(weights.linear(f"{path}.gate_up_proj"), _summed(down, rank))


def _make_sparse_mlp(moe: MoEConfig, weights: Weights, path: str, rank: Rank) -> SparseMLP:
    part = rank.part.experts
    assert part is not None, "a sparse model has experts"
    first, end = part.span
    shared_expert = None
    if moe.shared_expert_intermediate_size:
        shared = f"{path}.shared_expert"
        down = weights.matrix(f"{shared}.down_proj")
        shared_expert = GatedMLP(
            weights.linear(f"{shared}.gate_up_proj"),
            PackedLinear(down) if rank.is_alone else _partial(down),
        )
    is_exchanged = rank.part.shares_out_experts
    return SparseMLP(
        weights.matrix(f"{path}.router"),
        ops.ExpertWeights(
            weights.matrix(f"{path}.experts.gate_up_proj"),
            weights.matrix(f"{path}.experts.down_proj"),
            end - first,
            first,
        ),
        ops.Routing(moe.num_experts_per_token, moe.norm_topk_prob),
        moe.num_experts,
        shared_expert,
        exchange=ExpertExchange(rank.collectives, part.ends) if is_exchanged else None,
        summed_by=None if rank.is_alone or is_exchanged else rank.collectives,
    )


def _summed(weight: ops.PackedWeight, rank: Rank) -> Linear:
    """The product that ends a sublayer, of which each rank has some of the inputs."""
    return PackedLinear(weight) if rank.is_alone else SummedLinear(weight, rank.collectives)


def _partial(weight: ops.PackedWeight) -> Linear:
    """The same, where somebody else adds the ranks' sums up."""
    return PackedLinear(weight, out_dtype="float32")
