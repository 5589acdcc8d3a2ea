"""What each rank of an engine would hold, from shapes alone: nothing is read but `config.json`."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from rtp_serve.config.engine import EngineConfig
from rtp_serve.config.model import ModelConfig
from rtp_serve.config.parallel import ParallelConfig
from rtp_serve.errors import ConfigError
from rtp_serve.models.registry import MODELS
from rtp_serve.models.shards import shard_specs
from rtp_serve.models.weights import WeightSpec
from rtp_serve.parallel.partition import RankPart, Span, partition
from rtp_serve.worker.capacity import Capacity, plan_capacity

_FP32_BYTES = 4
_MAX_RANKS = 64
"""Beyond it nobody is advised to go."""


@dataclass(frozen=True, slots=True)
class RankPlacement:
    """One rank's share, in bytes where it is memory."""

    part: RankPart
    weight_bytes: int
    kv_bytes: int
    workspace_bytes: int
    """What a step of `max_num_batched_tokens` needs beside, about."""

    @property
    def total_bytes(self) -> int:
        return self.weight_bytes + self.kv_bytes + self.workspace_bytes


@dataclass(frozen=True, slots=True)
class Placement:
    """All ranks of one engine."""

    model: ModelConfig
    config: EngineConfig
    capacity: Capacity
    """Of rank 0; the number of blocks and tokens is that of all."""

    ranks: tuple[RankPlacement, ...]
    rank_memory_bytes: int | None
    """What a rank has; None if that is not known."""

    @property
    def largest(self) -> RankPlacement:
        """The rank that needs most."""
        return max(self.ranks, key=lambda rank: rank.total_bytes)

    @property
    def fits(self) -> bool:
        """Whether every rank has the memory; True where nobody knows."""
        memory = self.rank_memory_bytes
        return memory is None or self.largest.total_bytes <= memory

    def remedies(self) -> Iterator[str]:
        """Settings, each of which alone would make it fit; nothing where it fits."""
        memory = self.rank_memory_bytes
        if memory is None or self.fits:
            return
        largest = self.largest
        room = memory - largest.weight_bytes - largest.workspace_bytes
        num_blocks = room // self.capacity.spec.block_bytes if room > 0 else 0
        if num_blocks > 1:
            block_bytes = largest.kv_bytes // self.capacity.num_blocks
            yield f"engine.cache.memory: {room // block_bytes * block_bytes} or less"
        for parallel in _larger(self.config.parallel, is_sparse=self.model.moe is not None):
            config = self.config.model_copy(update={"parallel": parallel})
            try:
                fits = place(self.model, config, memory).fits
            except ConfigError:
                continue
            if fits:
                yield f"engine.parallel: {{tp: {parallel.tp}, ep: {parallel.ep}}}"
                return


def place(model: ModelConfig, config: EngineConfig, rank_memory_bytes: int | None) -> Placement:
    """Raises ConfigError if the model cannot be divided so, or not one sequence would fit."""
    specs = MODELS.load(model.architecture).weight_specs(model)
    ranks = []
    for part in partition(model, config.parallel):
        capacity = plan_capacity(model, config, part.rank)
        itemsize = capacity.spec.format.itemsize
        ranks.append(
            RankPlacement(
                part,
                weight_bytes(shard_specs(specs, model, part), itemsize),
                capacity.num_blocks * capacity.spec.block_bytes,
                _workspace_bytes(model, config, part, itemsize),
            )
        )
    return Placement(model, config, plan_capacity(model, config), tuple(ranks), rank_memory_bytes)


def weight_bytes(specs: Sequence[WeightSpec], itemsize: int) -> int:
    """Of a rank's weights; biases are kept in float32."""
    elements = sum(spec.num_rows * (spec.num_columns if spec.is_matrix else 1) for spec in specs)
    biases = sum(tensor.num_rows for spec in specs for tensor in spec.biases)
    return elements * itemsize + biases * _FP32_BYTES


def _workspace_bytes(
    model: ModelConfig, config: EngineConfig, part: RankPart, itemsize: int
) -> int:
    """The residual stream twice, a layer's widest parts, and float32 logits of all sequences."""
    tokens = config.scheduler.max_num_batched_tokens
    attention = 2 * (part.num_heads + 2 * part.num_kv_heads) * model.head_dim
    mlp = 2 * _length(part.intermediate)
    if model.moe is not None and part.experts is not None:
        # A token has rows at some of its experts, with what goes in and what comes out.
        row = model.hidden_size + 2 * _length(part.experts.intermediate)
        mlp = model.moe.num_experts_per_token * row // config.parallel.ep
    logits = config.scheduler.max_num_seqs * model.vocab_size * _FP32_BYTES
    return tokens * (2 * model.hidden_size + max(attention, mlp)) * itemsize + logits


def _length(span: Span) -> int:
    return span[1] - span[0]


def _larger(parallel: ParallelConfig, *, is_sparse: bool) -> Iterator[ParallelConfig]:
    """Twice the ranks, and so on: of an expert where there are experts, else of a layer."""
    tp, ep = parallel.tp, parallel.ep
    while tp * ep * 2 <= _MAX_RANKS:
        tp, ep = (tp, ep * 2) if is_sparse else (tp * 2, ep)
        yield ParallelConfig(tp=tp, ep=ep)
