"""Checkpoint directory → a runner that is ready for its first step."""

import ctypes
from dataclasses import dataclass
from pathlib import Path

import torch

from rtp_serve.config.engine import EngineConfig
from rtp_serve.config.model import ModelConfig, read_model_config
from rtp_serve.kv_cache.tensors import KVCacheTensors
from rtp_serve.loader.checkpoint import Checkpoint
from rtp_serve.loader.weights import load_weights
from rtp_serve.models.model import Model
from rtp_serve.models.registry import MODELS
from rtp_serve.worker.capacity import Capacity, compute_dtype, plan_capacity
from rtp_serve.worker.model_runner import ModelRunner
from rtp_serve.worker.threads import use_compute_threads


@dataclass(frozen=True, slots=True)
class LoadedRunner:
    """A runner and what the control plane must know of it."""

    runner: ModelRunner
    model: ModelConfig
    capacity: Capacity


def load_runner(directory: Path, config: EngineConfig) -> LoadedRunner:
    """Raises CheckpointError or ConfigError before any weight is read."""
    use_compute_threads(config.num_threads)
    model_config = read_model_config(directory)
    capacity = plan_capacity(model_config, config)
    dtype = getattr(torch, compute_dtype(model_config, config))
    model = load_model(directory, model_config, dtype, capacity.max_model_len)
    _return_free_memory()
    cache = KVCacheTensors(capacity.spec, capacity.num_blocks)
    runner = ModelRunner(model, cache, config.scheduler.max_num_seqs, capacity.max_model_len)
    return LoadedRunner(runner, model_config, capacity)


def load_model(
    directory: Path, config: ModelConfig, dtype: torch.dtype, max_positions: int
) -> Model:
    """The checkpoint's model alone, computing in `dtype` at positions below `max_positions`."""
    factory = MODELS.load(config.architecture)
    weights = load_weights(Checkpoint(directory), factory.weight_specs(config), config, dtype)
    return factory(config, weights, max_positions)


def _return_free_memory() -> None:
    """Weights on their way leave holes in the heap, which glibc would keep."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
