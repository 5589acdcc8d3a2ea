"""Runners over tiny random-weight checkpoints."""

from pathlib import Path
from typing import Any

import numpy as np
import torch

from rtp_serve.config.engine import CacheConfig, EngineConfig, SchedulerConfig, WeightStoreConfig
from rtp_serve.config.model import ModelConfig
from rtp_serve.kv_cache.spec import KVCacheSpec, KVFormat
from rtp_serve.kv_cache.tensors import KVCacheTensors
from rtp_serve.models.model import Model, ModelInputs
from rtp_serve.ops import AttentionMetadata
from rtp_serve.worker.loading import load_planned, plan_model
from rtp_serve.worker.model_runner import ModelRunner
from rtp_serve.worker.worker import Worker

BLOCK_SIZE = 16
MAX_NUM_SEQS = 16


def make_runner(directory: Path, *, num_blocks: int = 128, **config: Any) -> ModelRunner:
    config.setdefault("weight_store", WeightStoreConfig(enable=False))
    settings = EngineConfig(
        cache=CacheConfig(num_blocks=num_blocks),
        scheduler=SchedulerConfig(max_num_seqs=MAX_NUM_SEQS),
        **config,
    )
    plan = plan_model(directory, settings)
    cache = KVCacheTensors(plan.capacity.spec, num_blocks)
    model = load_planned(plan, settings).model
    return ModelRunner(model, cache, MAX_NUM_SEQS, plan.capacity.max_model_len)


def make_worker(*directories: Path, num_blocks: int = 128) -> Worker:
    """Version i of the model is that of directory i."""
    settings = EngineConfig(weight_store=WeightStoreConfig(enable=False))
    plans = [plan_model(directory, settings) for directory in directories]
    capacity = plans[0].capacity
    cache = KVCacheTensors(capacity.spec, num_blocks)
    worker = Worker(cache, MAX_NUM_SEQS, capacity.max_model_len)
    for number, plan in enumerate(plans):
        worker.add(number, load_planned(plan, settings))
    return worker


def make_cache(config: ModelConfig, dtype: torch.dtype = torch.float32) -> KVCacheTensors:
    kv_format = KVFormat(str(dtype).removeprefix("torch."))
    spec = KVCacheSpec(
        config.num_layers, config.num_kv_heads, config.head_dim, BLOCK_SIZE, kv_format
    )
    return KVCacheTensors(spec, num_blocks=16)


def whole_prompt(token_ids: list[int], **replaced: Any) -> ModelInputs:
    """One sequence computed in one step, from block 1 on."""
    length = len(token_ids)
    num_blocks = -(-length // BLOCK_SIZE)
    metadata = AttentionMetadata(
        slots=np.arange(length) + BLOCK_SIZE,
        block_tables=np.arange(1, num_blocks + 1, dtype=np.int32)[None],
        query_start_loc=np.array([0, length], np.int32),
        seq_lens=np.array([length], np.int32),
    )
    inputs = {
        "token_ids": np.array(token_ids),
        "positions": np.arange(length),
        "attention": metadata,
    }
    return ModelInputs(**(inputs | replaced))


def all_logits(model: Model, hidden: torch.Tensor) -> torch.Tensor:
    """[num_tokens, vocab_size] of every row."""
    return torch.from_numpy(model.logits(hidden, np.arange(len(hidden))))


def make_prompt(length: int, seed: int = 0, vocab_size: int = 256) -> list[int]:
    return np.random.default_rng(seed).integers(3, vocab_size, length).tolist()
