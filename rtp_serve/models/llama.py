"""The Llama family: Llama, Qwen2 (biased qkv) and Qwen3 (normed q and k heads), and of the latter
two those whose layers have experts in place of an MLP.

The residual stream is one tensor, to which every half of a layer adds what it makes of it. Layers
whose linears are all packed ones run together, in one call of the kernels; others op by op.
"""

from dataclasses import dataclass
from itertools import groupby

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rtp_serve import ops
from rtp_serve.config.model import ModelConfig
from rtp_serve.kv_cache.tensors import KVCacheTensors
from rtp_serve.models.layers.attention import Attention
from rtp_serve.models.layers.embedding import TokenEmbedding
from rtp_serve.models.layers.linear import Linear, PackedLinear, SummedLinear
from rtp_serve.models.layers.mlp import GatedMLP
from rtp_serve.models.layers.moe import SparseMLP
from rtp_serve.models.layers.norm import RMSNorm
from rtp_serve.models.layers.rotary import RotaryEmbedding
from rtp_serve.models.model import HiddenStates, ModelInputs
from rtp_serve.models.rank import Rank, whole
from rtp_serve.models.weights import Weights, WeightSpec, matrix, vector


def _make_mlp(
    config: ModelConfig, weights: Weights, index: int, rank: Rank
) -> GatedMLP | SparseMLP:
    path = f"layers.{index}.mlp"

    def gated(path: str) -> GatedMLP:
        return GatedMLP(weights.linear(f"{path}.gate_up_proj"), weights.linear(f"{path}.down_proj"))

    moe = config.moe
    if moe is None or not moe.is_sparse(index):
        down = weights.matrix(f"{path}.down_proj")
        return GatedMLP(weights.linear(f"{path}.gate_up_proj"), _summed(down, rank))
    return SparseMLP(
        weights.matrix(f"{path}.router"),
        ops.ExpertWeights(
            weights.matrix(f"{path}.experts.gate_up_proj"),
            weights.matrix(f"{path}.experts.down_proj"),
            moe.num_experts,
        ),
        ops.Routing(moe.num_experts_per_token, moe.norm_topk_prob),
        moe.num_experts,
        gated(f"{path}.shared_expert") if moe.shared_expert_intermediate_size else None,
    )


def _summed(weight: ops.PackedWeight, rank: Rank) -> Linear:
    """The product that ends a sublayer, of which each rank has some of the inputs."""
    return PackedLinear(weight) if rank.is_alone else SummedLinear(weight, rank.collectives)


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
        self.input_norm = norm("input_norm")
        self.attention = Attention(
            ops.HeadShape(rank.part.num_heads, rank.part.num_kv_heads, config.head_dim),
            weights.linear(f"{path}.attention.qkv_proj"),
            _summed(weights.matrix(f"{path}.attention.o_proj"), rank),
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
        kv = cache.layer(self._index)
        residual += self.attention(self.input_norm(residual), positions, kv, metadata)
        residual += self.mlp(self.mlp_norm(residual))

    def sublayers(self) -> tuple[ops.Sublayer, ...]:
        """The layer as kernels; empty where it must be computed op by op."""
        attention = self.attention.sublayer(self.input_norm, self._index)
        mlp = self.mlp.sublayer(self.mlp_norm)
        return (attention, mlp) if attention is not None and mlp is not None else ()


@dataclass(frozen=True, slots=True)
class _Run:
    """Layers one behind the other that are computed alike."""

    layers: list[DecoderLayer]
    # theirs, in one list; empty where layers are computed op by op
    sublayers: list[ops.Sublayer]


class DenseDecoder:
    """Embedding, layers, final norm and output head."""

    def __init__(
        self,
        config: ModelConfig,
        weights: Weights,
        max_positions: int,
        rank: Rank | None = None,
    ) -> None:
        norm_weight = weights.vector("norm")
        self.config = config
        self.rank = rank = rank or whole(config)
        self.device = norm_weight.device
        rotary = RotaryEmbedding(config.rope, config.head_dim, max_positions, self.device)
        embedding = weights.matrix("embedding")
        head = embedding if config.tie_word_embeddings else weights.matrix("lm_head")
        self.embedding = TokenEmbedding(embedding, rank)
        self.layers = [
            DecoderLayer(config, weights, index, rotary, rank) for index in range(config.num_layers)
        ]
        self.norm = RMSNorm(norm_weight, config.rms_norm_eps)
        self.lm_head: Linear = PackedLinear(head, out_dtype=torch.float32)
        # by first layer and the one after the last
        self._runs: dict[tuple[int, int], list[_Run]] = {}

    @staticmethod
    def weight_specs(config: ModelConfig) -> tuple[WeightSpec, ...]:
        """Everything the model wants, in model order."""
        vocabulary = {"model.embed_tokens": config.vocab_size}
        specs = [matrix("embedding", vocabulary, config.hidden_size)]
        for index in range(config.num_layers):
            specs += _layer_specs(config, index)
        specs.append(vector("norm", "model.norm", config.hidden_size))
        if not config.tie_word_embeddings:
            specs.append(matrix("lm_head", {"lm_head": config.vocab_size}, config.hidden_size))
        return tuple(specs)

    def forward(
        self, inputs: ModelInputs, cache: KVCacheTensors, taps: tuple[int, ...] = ()
    ) -> HiddenStates:
        """Compute the step's tokens and write their KV. `taps` are layers to report."""
        residual = self.embedding(inputs.token_ids, inputs.embeds, inputs.is_embedded)
        tapped: dict[int, Tensor] = {}
        done = 0
        for index in sorted(taps):
            self._run_layers(done, index + 1, residual, inputs, cache)
            tapped[index] = residual.clone()
            done = index + 1
        self._run_layers(done, len(self.layers), residual, inputs, cache)
        return HiddenStates(residual, tuple([tapped[index] for index in taps]))

    def _run_layers(
        self, start: int, end: int, residual: Tensor, inputs: ModelInputs, cache: KVCacheTensors
    ) -> None:
        runs = self._runs.get((start, end))
        if runs is None:
            runs = self._runs[start, end] = _runs(self.layers[start:end])
        for run in runs:
            if run.sublayers:
                ops.run_sublayers(
                    run.sublayers, residual, inputs.positions, cache.data, inputs.attention
                )
            else:
                positions = torch.from_numpy(inputs.positions).to(self.device)
                metadata = ops.to_device(inputs.attention, self.device)
                for layer in run.layers:
                    layer(residual, positions, cache, metadata)

    def logits(self, hidden: Tensor, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        """Of the rows [n] of `HiddenStates.last`: [n, vocab_size], on the host."""
        return self.rank.gather_vocab(self._own_logits(hidden, rows))

    def greedy(self, hidden: Tensor, rows: NDArray[np.int64]) -> NDArray[np.int32]:
        """The ids [n] of the largest of these logits, or NO_TOKEN."""
        return self.rank.greedy(self._own_logits(hidden, rows))

    def _own_logits(self, hidden: Tensor, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        """Of this rank's part of the vocabulary."""
        head = self.lm_head
        if isinstance(head, PackedLinear):
            return ops.logits(hidden, rows, self.norm.spec, head.weight)
        chosen = hidden[torch.from_numpy(rows).to(hidden.device)]
        logits: NDArray[np.float32] = head(self.norm(chosen)).cpu().numpy()
        return logits

    def expert_counts(self) -> dict[int, NDArray[np.int64]]:
        """By sparse layer, the tokens that each expert got since the start; counted on in place."""
        return {
            index: layer.mlp.load
            for index, layer in enumerate(self.layers)
            if isinstance(layer.mlp, SparseMLP)
        }

    def linear(self, path: str) -> Linear:
        """The linear at a path such as `layers.0.attention.qkv_proj`."""
        owner, name = self._locate(path)
        linear: Linear = getattr(owner, name)
        return linear

    def replace_linear(self, path: str, linear: Linear) -> None:
        """Put another linear, of the same shape, in its place."""
        owner, name = self._locate(path)
        setattr(owner, name, linear)
        self._runs.clear()

    def _locate(self, path: str) -> tuple[object, str]:
        """The object that holds the linear at `path`, and its name there. Raises KeyError."""
        *parents, name = path.split(".")
        owner: object = self
        for part in parents:
            owner = owner[int(part)] if isinstance(owner, list) else getattr(owner, part, None)
        if not name.endswith(("_proj", "lm_head")) or not hasattr(owner, name):
            raise KeyError(f"no linear at {path!r}")
        return owner, name


def _runs(layers: list[DecoderLayer]) -> list[_Run]:
    """Layers that are kernels go as many at a time as follow each other."""
    bound = [(layer, layer.sublayers()) for layer in layers]
    groups = [list(group) for _, group in groupby(bound, lambda pair: bool(pair[1]))]
    return [
        _Run([layer for layer, _ in group], [part for _, parts in group for part in parts])
        for group in groups
    ]


def _layer_specs(config: ModelConfig, index: int) -> list[WeightSpec]:
    path, module = f"layers.{index}", f"model.layers.{index}"
    hidden, heads = config.hidden_size, config.num_heads * config.head_dim
    kv_heads = config.num_kv_heads * config.head_dim
    attention = f"{module}.self_attn"
    qkv = {
        f"{attention}.q_proj": heads,
        f"{attention}.k_proj": kv_heads,
        f"{attention}.v_proj": kv_heads,
    }
    specs = [
        vector(f"{path}.input_norm", f"{module}.input_layernorm", hidden),
        matrix(f"{path}.attention.qkv_proj", qkv, hidden, has_bias=config.qkv_bias),
        matrix(
            f"{path}.attention.o_proj",
            {f"{attention}.o_proj": hidden},
            heads,
            has_bias=config.o_bias,
        ),
        vector(f"{path}.mlp_norm", f"{module}.post_attention_layernorm", hidden),
        *_mlp_specs(config, index),
    ]
    if config.qk_norm:
        specs.append(vector(f"{path}.q_norm", f"{attention}.q_norm", config.head_dim))
        specs.append(vector(f"{path}.k_norm", f"{attention}.k_norm", config.head_dim))
    return specs


def _mlp_specs(config: ModelConfig, index: int) -> list[WeightSpec]:
    path, module, moe = f"layers.{index}.mlp", f"model.layers.{index}.mlp", config.moe
    if moe is None or not moe.is_sparse(index):
        return _gated_specs(path, [module], config.hidden_size, config.intermediate_size)
    shared_size = moe.shared_expert_intermediate_size
    gates = {f"{module}.gate": moe.num_experts}
    shared = []
    if shared_size:
        gates[f"{module}.shared_expert_gate"] = 1
        shared_path, shared_module = f"{path}.shared_expert", f"{module}.shared_expert"
        shared = _gated_specs(shared_path, [shared_module], config.hidden_size, shared_size)
    modules = [f"{module}.experts.{expert}" for expert in range(moe.num_experts)]
    return [
        matrix(f"{path}.router", gates, config.hidden_size),
        *_gated_specs(f"{path}.experts", modules, config.hidden_size, moe.intermediate_size),
        *shared,
    ]


def _gated_specs(path: str, modules: list[str], hidden_size: int, size: int) -> list[WeightSpec]:
    """Of one gated MLP, or of experts, stacked one behind the other."""
    halves = [f"{module}.{half}_proj" for module in modules for half in ("gate", "up")]
    downs = [f"{module}.down_proj" for module in modules]
    return [
        matrix(f"{path}.gate_up_proj", dict.fromkeys(halves, size), hidden_size),
        matrix(f"{path}.down_proj", dict.fromkeys(downs, hidden_size), size),
    ]
