"""KV blocks and context length from checkpoint and settings."""

import re

import pytest

from rtp_serve.config.engine import CacheConfig, EngineConfig
from rtp_serve.config.model import ModelConfig
from rtp_serve.errors import ConfigError
from rtp_serve.kv_cache.spec import KVFormat
from rtp_serve.worker.capacity import plan_capacity

MODEL = ModelConfig(num_layers=2, num_kv_heads=2, head_dim=16, max_model_len=1000)
BLOCK_BYTES = 2 * 2 * 2 * 16 * 16 * 2


def test_blocks_fill_the_memory_given():
    capacity = plan_capacity(MODEL, EngineConfig(cache=CacheConfig(memory=100 * BLOCK_BYTES + 5)))
    assert capacity.num_blocks == 100
    assert capacity.spec.block_bytes == BLOCK_BYTES
    assert capacity.max_model_len == 1000


def test_a_wider_type_halves_the_blocks():
    cache = CacheConfig(memory=100 * BLOCK_BYTES)
    capacity = plan_capacity(MODEL, EngineConfig(cache=cache, dtype="float32"))
    assert capacity.num_blocks == 50
    assert capacity.spec.format == KVFormat.FP32


def test_the_checkpoints_length_is_cut_to_the_memory():
    assert plan_capacity(MODEL, with_blocks(5)).max_model_len == 64
    assert plan_capacity(MODEL, with_blocks(2)).max_model_len == 16


def test_a_configured_length_holds_to_the_token():
    assert plan_capacity(MODEL, with_blocks(6, max_model_len=70)).max_model_len == 70


def with_blocks(num_blocks: int, max_model_len: int | None = None) -> EngineConfig:
    return EngineConfig(cache=CacheConfig(num_blocks=num_blocks), max_model_len=max_model_len)


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (with_blocks(500, 1001), "max_model_len: 1001 is more than the 1000 tokens"),
        (with_blocks(5, 65), "cache.num_blocks: at least 6 are needed, got 5"),
        (
            EngineConfig(cache=CacheConfig(memory=3 * BLOCK_BYTES), max_model_len=33),
            f"cache.memory: at least {4 * BLOCK_BYTES} bytes are needed, got {3 * BLOCK_BYTES}",
        ),
        (
            EngineConfig(cache=CacheConfig(memory=10)),
            f"cache.memory: at least {2 * BLOCK_BYTES} bytes are needed, got 10",
        ),
    ],
)
def test_what_does_not_fit_names_the_setting_and_the_need(config: EngineConfig, expected: str):
    with pytest.raises(ConfigError, match=re.escape(expected)):
        plan_capacity(MODEL, config)
