"""Which part of a model each rank computes, as data.

    attention            query heads with their key/value head, and the vocabulary: all ranks
    dense MLP            its inner columns: all ranks
    experts              group g of `tp` ranks has the g-th share of the experts,
                         and a rank of the group its share of their inner columns
    shared expert        its inner columns: all ranks; each has all of it where there are several
                         groups, for it computes its own tokens then

Shares are ranges, near-equal, in order of rank. A key/value head that has fewer query heads than
there are ranks for it is held by several ranks, each with some of its query heads.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from rtp_serve.config.model import ModelConfig, MoEConfig
from rtp_serve.config.parallel import ParallelConfig
from rtp_serve.errors import ConfigError

Span = tuple[int, int]
"""[begin, end)."""

_STRIP = 32
"""Inner columns and tokens of the vocabulary are shared out by so many, which the kernels compute
together, where there are enough of them."""


@dataclass(frozen=True, slots=True)
class ExpertsPart:
    """One rank's part of the experts of a sparse layer."""

    ends: tuple[int, ...]
    """Of each group of ranks, the expert after its last one."""

    span: Span
    """Those of this rank's group."""

    intermediate: Span
    """Inner columns of each of them."""

    shared_intermediate: Span
    """Inner columns of the expert that every token goes through."""


@dataclass(frozen=True, slots=True)
class RankPart:
    """One rank's part of every layer."""

    rank: int
    world_size: int
    heads: Span
    """Query heads."""

    kv_heads: Span
    intermediate: Span
    """Inner columns of a dense MLP."""

    vocab: Span
    """Rows of embedding and head."""

    experts: ExpertsPart | None
    """Of every sparse layer; None in a dense model."""

    @property
    def shares_out_experts(self) -> bool:
        """Whether other ranks have experts that this one has not."""
        return self.experts is not None and len(self.experts.ends) > 1

    @property
    def num_heads(self) -> int:
        return self.heads[1] - self.heads[0]

    @property
    def num_kv_heads(self) -> int:
        return self.kv_heads[1] - self.kv_heads[0]


def partition(model: ModelConfig, parallel: ParallelConfig) -> tuple[RankPart, ...]:
    """The part of each rank. Raises ConfigError if the model cannot be divided among so many."""
    world_size = parallel.world_size
    _check(model, parallel)
    return tuple(
        RankPart(
            rank,
            world_size,
            *_heads(model, rank, world_size),
            share(model.intermediate_size, rank, world_size, _STRIP),
            share(model.vocab_size, rank, world_size, _STRIP),
            _experts(model.moe, parallel, rank) if model.moe is not None else None,
        )
        for rank in range(world_size)
    )


def share(size: int, rank: int, world_size: int, unit: int = 1) -> Span:
    """A rank's part of `size`, in whole units where each rank gets one."""
    if unit > 1 and size < unit * world_size:
        unit = 1
    num_units = -(-size // unit)
    begin, end = (num_units * each // world_size * unit for each in (rank, rank + 1))
    return begin, min(end, size)


def _heads(model: ModelConfig, rank: int, world_size: int) -> tuple[Span, Span]:
    """Query heads and key/value heads."""
    group = model.num_heads // model.num_kv_heads
    if world_size <= model.num_kv_heads:
        begin, end = share(model.num_kv_heads, rank, world_size)
        return (begin * group, end * group), (begin, end)
    num_sharing = world_size // model.num_kv_heads
    kv_head, place = divmod(rank, num_sharing)
    begin, end = share(group, place, num_sharing)
    return (kv_head * group + begin, kv_head * group + end), (kv_head, kv_head + 1)


def _experts(moe: MoEConfig, parallel: ParallelConfig, rank: int) -> ExpertsPart:
    group, place = divmod(rank, parallel.tp)
    spans = [share(moe.num_experts, each, parallel.ep) for each in range(parallel.ep)]
    shared_size = moe.shared_expert_intermediate_size
    return ExpertsPart(
        tuple(end for _, end in spans),
        spans[group],
        share(moe.intermediate_size, place, parallel.tp, _STRIP),
        (0, shared_size) if parallel.ep > 1 else share(shared_size, place, parallel.tp, _STRIP),
    )


def _check(model: ModelConfig, parallel: ParallelConfig) -> None:
    world_size, num_kv_heads = parallel.world_size, model.num_kv_heads
    if world_size > num_kv_heads:
        fitting = _fitting_sizes(model)
        if world_size not in fitting:
            raise ConfigError(
                f"parallel: {world_size} ranks (tp {parallel.tp} * ep {parallel.ep}) cannot share "
                f"{model.num_heads} query heads of {num_kv_heads} key/value heads; "
                f"allowed: {_listed(fitting)}"
            )
    _check_experts(model, parallel)
    if world_size > min(model.intermediate_size, model.vocab_size):
        raise ConfigError(
            f"parallel: {world_size} ranks are more than the model has columns to share"
        )


def _check_experts(model: ModelConfig, parallel: ParallelConfig) -> None:
    if model.moe is None:
        if parallel.ep > 1:
            raise ConfigError(
                f"parallel.ep: {model.architecture} has no experts; allowed: 1, got {parallel.ep}"
            )
        return
    if parallel.ep > model.moe.num_experts:
        raise ConfigError(
            f"parallel.ep: at most {model.moe.num_experts}, the experts of a layer, "
            f"got {parallel.ep}"
        )
    # An expert's weights are read in whole strips.
    num_strips = model.moe.intermediate_size // _STRIP
    if model.moe.shared_expert_intermediate_size and parallel.ep == 1:
        num_strips = min(num_strips, model.moe.shared_expert_intermediate_size // _STRIP)
    if parallel.tp > num_strips:
        raise ConfigError(
            f"parallel.tp: at most {num_strips}, for each rank has {_STRIP} inner columns of an "
            f"expert at least, got {parallel.tp}"
        )


def _fitting_sizes(model: ModelConfig) -> list[int]:
    """Numbers of ranks that can share the heads: any up to the key/value heads, and multiples."""
    num_kv_heads, group = model.num_kv_heads, model.num_heads // model.num_kv_heads
    return [*range(1, num_kv_heads + 1), *(num_kv_heads * n for n in range(2, group + 1))]


def _listed(sizes: Sequence[int]) -> str:
    return ", ".join(map(str, sizes))
