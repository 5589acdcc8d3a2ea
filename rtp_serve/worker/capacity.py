"""How much the KV cache holds, and so how long a sequence may be. Numbers only, no memory here.

All ranks of an engine have the same blocks of the same tokens, each the heads that are its own: how
many is decided by the rank with most of them.
"""

from dataclasses import dataclass

from rtp_serve.config.engine import EngineConfig
from rtp_serve.config.model import ModelConfig
from rtp_serve.errors import ConfigError
from rtp_serve.kv_cache.spec import KVCacheSpec, KVFormat
from rtp_serve.parallel.partition import partition

_NULL_BLOCKS = 1


@dataclass(frozen=True, slots=True)
class Capacity:
    """What one rank of an engine can hold, which is as many tokens as any other."""

    spec: KVCacheSpec
    """Of the rank."""

    num_blocks: int
    """All blocks, the null block among them."""

    max_model_len: int
    """Prompt plus output of one sequence, in tokens."""


def plan_capacity(model: ModelConfig, config: EngineConfig, rank: int = 0) -> Capacity:
    """From checkpoint and settings. Raises ConfigError when not even one sequence would fit."""
    parts = partition(model, config.parallel)
    specs = [
        KVCacheSpec(
            num_layers=model.num_layers,
            num_kv_heads=part.num_kv_heads,
            head_dim=model.head_dim,
            block_size=config.cache.block_size,
            format=KVFormat(compute_dtype(model, config)),
        )
        for part in parts
    ]
    spec = max(specs, key=lambda each: each.block_bytes)
    num_blocks = config.cache.num_blocks or spec.blocks_in(config.cache.memory)
    wanted_len = config.max_model_len or model.max_model_len
    if wanted_len > model.max_model_len:
        raise ConfigError(
            f"max_model_len: {wanted_len} is more than the {model.max_model_len} tokens "
            "this checkpoint was made for"
        )
    fitting_len = (num_blocks - _NULL_BLOCKS) * spec.block_size
    # What was asked for must fit; what the checkpoint could do is cut, down to one block.
    needed_len = config.max_model_len or min(spec.block_size, model.max_model_len)
    if fitting_len < needed_len:
        raise ConfigError(_too_small(spec, config, needed_len, fitting_len))
    return Capacity(specs[rank], num_blocks, min(wanted_len, fitting_len))


def compute_dtype(model: ModelConfig, config: EngineConfig) -> str:
    """`bfloat16` or `float32`."""
    return model.dtype if config.dtype == "auto" else config.dtype


def _too_small(spec: KVCacheSpec, config: EngineConfig, needed_len: int, fitting_len: int) -> str:
    needed_blocks = -(-needed_len // spec.block_size) + _NULL_BLOCKS
    need = (
        f"cache.num_blocks: at least {needed_blocks} are needed, got {config.cache.num_blocks}"
        if config.cache.num_blocks
        else f"cache.memory: at least {needed_blocks * spec.block_bytes} bytes are needed, "
        f"got {config.cache.memory}"
    )
    return (
        f"{need}: a sequence of {needed_len} tokens must fit, and {max(fitting_len, 0)} do "
        f"({spec.block_bytes} bytes hold {spec.block_size} tokens; one block stays empty)"
    )
