"""The Llama family: Llama, Qwen2 (biased qkv) and Qwen3 (normed q and k heads), and of the latter
two those whose layers have experts in place of an MLP.

The residual stream is one tensor, to which every half of a layer adds what it makes of it. Layers
whose linears are all packed ones run together, in one call of the kernels; others op by op. If all
of them do, a step of which only logits are wanted is one call from token ids to them, and of the
last layer it computes no more than these need.
"""

from dataclasses import dataclass
from itertools import groupby

import numpy as np
import torch
from numpy.typing import NDArray

from rtp_serve import ops
from rtp_serve.config.model import ModelConfig
from rtp_serve.kv_cache.tensors import KVCacheTensors
from rtp_serve.models.layers.decoder_layer import DecoderLayer
from rtp_serve.models.layers.embedding import TokenEmbedding
from rtp_serve.models.layers.linear import Linear, PackedLinear
from rtp_serve.models.layers.moe import SparseMLP
from rtp_serve.models.layers.norm import RMSNorm
from rtp_serve.models.layers.rotary import RotaryEmbedding
from rtp_serve.models.model import HiddenStates, LayerReport, ModelInputs
from rtp_serve.models.rank import Rank, whole
from rtp_serve.models.specs import decoder_specs
from rtp_serve.models.weights import Weights, WeightSpec
from rtp_serve.ops.tensor import Device, Tensor


@dataclass(frozen=True, slots=True)
class _Run:
    """Layers one behind the other that are computed alike."""

    layers: list[DecoderLayer]
    # theirs, in one list; empty where layers are computed op by op
    sublayers: list[ops.Sublayer]


class Decoder:
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
        rotary = RotaryEmbedding(config.rope, config.head_dim, max_positions, norm_weight)
        embedding = weights.matrix("embedding")
        head = embedding if config.tie_word_embeddings else weights.matrix("lm_head")
        self.embedding = TokenEmbedding(embedding, rank)
        self.layers = [
            DecoderLayer(config, weights, index, rotary, rank) for index in range(config.num_layers)
        ]
        self.norm = RMSNorm(norm_weight, config.rms_norm_eps)
        self.lm_head: Linear = PackedLinear(head, out_dtype="float32")
        # by first layer and the one after the last
        self._runs: dict[tuple[int, int], list[_Run]] = {}
        # all of it over the cache of the last step; None where that is no single call
        self._bound: tuple[KVCacheTensors, ops.BoundDecoder | None] | None = None

    @property
    def device(self) -> Device:
        """Where it computes."""
        return ops.as_tensor(self.norm.spec.weight).device

    @staticmethod
    def weight_specs(config: ModelConfig) -> tuple[WeightSpec, ...]:
        """Everything the model wants, in model order."""
        return decoder_specs(config)

    def forward(
        self,
        inputs: ModelInputs,
        cache: KVCacheTensors,
        taps: tuple[int, ...] = (),
        report: LayerReport | None = None,
    ) -> HiddenStates:
        """Compute the step's tokens and write their KV. `taps` are layers whose output to give."""
        residual = self.embedding(inputs.token_ids, inputs.embeds, inputs.is_embedded)
        tapped: dict[int, Tensor] = {}
        done = 0
        for end in self._stops(taps, report):
            self._run_layers(done, end, residual, inputs, cache)
            done = end
            if end - 1 in taps:
                tapped[end - 1] = ops.as_tensor(residual).clone()
            if report is not None:
                report.tell(end)
        return HiddenStates(residual, tuple([tapped[index] for index in taps]))

    def _stops(self, taps: tuple[int, ...], report: LayerReport | None) -> list[int]:
        """After how many layers something else is to be done, in order; at last after all."""
        num_layers = len(self.layers)
        if not taps and report is None:
            return [num_layers]
        every = report.every if report is not None else num_layers
        return sorted({*range(every, num_layers, every), *[tap + 1 for tap in taps], num_layers})

    def _run_layers(
        self, start: int, end: int, residual: ops.Array, inputs: ModelInputs, cache: KVCacheTensors
    ) -> None:
        for run in self._runs_of(start, end):
            if run.sublayers:
                ops.run_sublayers(
                    run.sublayers, residual, inputs.positions, cache.array, inputs.attention
                )
            else:
                positions = torch.from_numpy(inputs.positions).to(self.device)
                metadata = ops.to_device(inputs.attention, self.device)
                for layer in run.layers:
                    layer(ops.as_tensor(residual), positions, cache, metadata)

    def _runs_of(self, start: int, end: int) -> list[_Run]:
        runs = self._runs.get((start, end))
        if runs is None:
            runs = self._runs[start, end] = _runs(self.layers[start:end])
        return runs

    def next_logits(
        self, inputs: ModelInputs, cache: KVCacheTensors, rows: NDArray[np.int64]
    ) -> NDArray[np.float32]:
        """`logits` of what `forward` gives, where nothing else of the step is wanted."""
        bound = self._bound_to(cache) if inputs.embeds is None else None
        if bound is None:
            return self.logits(self.forward(inputs, cache).last, rows)
        return bound.logits(inputs.token_ids, inputs.positions, inputs.attention, rows)

    def next_greedy(
        self, inputs: ModelInputs, cache: KVCacheTensors, rows: NDArray[np.int64]
    ) -> NDArray[np.int32]:
        """`greedy` of what `forward` gives, where nothing else of the step is wanted."""
        bound = self._bound_to(cache) if inputs.embeds is None else None
        if bound is None:
            return self.greedy(self.forward(inputs, cache).last, rows)
        return bound.greedy(inputs.token_ids, inputs.positions, inputs.attention, rows)

    def _bound_to(self, cache: KVCacheTensors) -> ops.BoundDecoder | None:
        if self._bound is None or self._bound[0] is not cache:
            self._bound = cache, self._bind(cache)
        return self._bound[1]

    def _bind(self, cache: KVCacheTensors) -> ops.BoundDecoder | None:
        embedding, head = self.embedding.weight, self.lm_head
        runs = self._runs_of(0, len(self.layers))
        if embedding is None or not isinstance(head, PackedLinear) or len(runs) != 1:
            return None
        (sublayers,) = [run.sublayers for run in runs]
        if not sublayers:
            return None
        return ops.bind_decoder(embedding, sublayers, self.norm.spec, head.weight, cache.array)

    def logits(self, hidden: ops.Array, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        """Of the rows [n] of `HiddenStates.last`: [n, vocab_size], on the host."""
        return self.rank.gather_vocab(self._own_logits(hidden, rows))

    def greedy(self, hidden: ops.Array, rows: NDArray[np.int64]) -> NDArray[np.int32]:
        """The ids [n] of the largest of these logits, or NO_TOKEN."""
        if not len(rows):  # nor do the other ranks want any
            return np.empty(0, np.int32)
        if self.rank.is_alone and isinstance(self.lm_head, PackedLinear):
            return ops.greedy(hidden, rows, self.norm.spec, self.lm_head.weight)
        return self.rank.greedy(self._own_logits(hidden, rows))

    def _own_logits(self, hidden: ops.Array, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        """Of this rank's part of the vocabulary."""
        head = self.lm_head
        if isinstance(head, PackedLinear):
            return ops.logits(hidden, rows, self.norm.spec, head.weight)
        chosen = ops.as_tensor(hidden)[torch.from_numpy(rows).to(self.device)]
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
        self._bound = None

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
