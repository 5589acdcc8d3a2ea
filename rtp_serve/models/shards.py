"""What one rank of several wants of a model's weights, as data. No memory, no arithmetic.

A weight whose outputs are divided among ranks is divided by rows, part by part: rank 1 of 2 has the
second half of q, of k and of v. One whose inputs are divided, such as the product that ends a
sublayer, is divided by columns, and the ranks' sums are added up.
"""

from collections.abc import Iterable, Sequence
from dataclasses import replace

from rtp_serve.config.model import ModelConfig
from rtp_serve.models.weights import TensorSpec, WeightSpec
from rtp_serve.parallel.partition import RankPart, Span


def shard_specs(
    specs: Iterable[WeightSpec], config: ModelConfig, part: RankPart
) -> tuple[WeightSpec, ...]:
    """A rank's part of a decoder: matrices divided, vectors and routers whole."""
    return tuple(_shard(spec, config, part) if spec.is_matrix else spec for spec in specs)


def _shard(spec: WeightSpec, config: ModelConfig, part: RankPart) -> WeightSpec:
    heads, kv_heads = (_scaled(span, config.head_dim) for span in (part.heads, part.kv_heads))
    *_, owner, name = ["", *spec.path.split(".")]
    experts = part.experts
    match owner, name:
        case _, "qkv_proj":
            return take_rows(spec, (heads, kv_heads, kv_heads))
        case _, "o_proj":
            return take_columns(spec, heads, part.rank)
        case "experts", "gate_up_proj" if experts is not None:
            begin, end = _scaled(experts.span, 2)  # gate and up of each
            taken = replace(spec, parts=spec.parts[begin:end])
            return take_rows(taken, [experts.intermediate] * len(taken.parts))
        case "experts", "down_proj" if experts is not None:
            taken = replace(spec, parts=spec.parts[slice(*experts.span)])
            return take_columns(taken, experts.intermediate, part.rank)
        case "shared_expert", "gate_up_proj" if experts is not None:
            return take_rows(spec, [experts.shared_intermediate] * 2)
        case "shared_expert", "down_proj" if experts is not None:
            return take_columns(spec, experts.shared_intermediate, part.rank)
        case _, "gate_up_proj":
            return take_rows(spec, [part.intermediate] * 2)
        case _, "down_proj":
            return take_columns(spec, part.intermediate, part.rank)
        case _, "embedding" | "lm_head":
            return take_rows(spec, [part.vocab])
        case _, "router":
            return spec
    raise AssertionError(f"nobody has said how ranks share {spec.path}")


def take_rows(spec: WeightSpec, rows: Sequence[Span]) -> WeightSpec:
    """These rows of each part, and of its bias."""

    def taken(tensors: Sequence[TensorSpec]) -> tuple[TensorSpec, ...]:
        return tuple(replace(each, rows=span) for each, span in zip(tensors, rows, strict=True))

    biases = taken(spec.biases) if spec.biases else ()
    return replace(spec, parts=taken(spec.parts), biases=biases)


def take_columns(spec: WeightSpec, columns: Span, rank: int) -> WeightSpec:
    """These columns of each part. The bias is rank 0's, for it is added once."""
    parts = tuple(replace(tensor, columns=columns) for tensor in spec.parts)
    return replace(spec, parts=parts, biases=spec.biases if rank == 0 else ())


def _scaled(span: Span, factor: int) -> Span:
    return span[0] * factor, span[1] * factor
