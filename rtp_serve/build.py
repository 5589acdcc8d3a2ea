"""The composition root: the one place where the two planes join."""

import hashlib
import json
from dataclasses import asdict
from pathlib import Path

from rtp_serve.clock import Clock, WallClock
from rtp_serve.config.engine import EngineConfig
from rtp_serve.engine.async_engine import AsyncEngine
from rtp_serve.engine.client import ServedModel
from rtp_serve.engine.core import EngineCore
from rtp_serve.engine.scheduler import Scheduler
from rtp_serve.kv_cache.block_pool import BlockPool
from rtp_serve.kv_cache.manager import KVCacheManager
from rtp_serve.loader.hub import resolve
from rtp_serve.observability.metrics import MetricsSink, PrometheusSink, TeeSink
from rtp_serve.ops.plan import numerics_plan
from rtp_serve.worker.executor import InProcessExecutor
from rtp_serve.worker.loading import LoadedRunner, load_runner


def build_core(
    config: EngineConfig, clock: Clock | None = None, sink: MetricsSink | None = None
) -> EngineCore:
    """Bring the model, load it and put an engine around it.

    Raises ConfigError, ModelNotFound or CheckpointError; nothing is left running then.
    """
    directory = resolve(config.model, config.revision)
    clock = clock or WallClock()
    loaded = load_runner(directory, config, clock)
    namespace = _namespace(directory, loaded)
    model = ServedModel(
        name=config.model_name,
        max_model_len=loaded.capacity.max_model_len,
        vocab_size=loaded.model.vocab_size,
        eos_token_ids=loaded.model.eos_token_ids,
        fingerprint=f"fp_{namespace.hex()[:16]}",
    )
    cache = KVCacheManager(
        BlockPool(loaded.capacity.num_blocks),
        config.cache.block_size,
        namespace,
        config.cache.enable_prefix_caching,
    )
    return EngineCore(
        model,
        Scheduler(config.scheduler, cache, model.max_model_len),
        cache,
        InProcessExecutor(loaded.runner, config.num_threads, loaded.guard),
        clock,
        sink or PrometheusSink(),
    )


def build_engine(
    config: EngineConfig, clock: Clock | None = None, sink: MetricsSink | None = None
) -> AsyncEngine:
    """An engine on a thread of its own. `sink` hears every measurement beside `metrics_text()`."""
    own = PrometheusSink()
    core = build_core(config, clock, TeeSink(own, sink) if sink else own)
    return AsyncEngine(core, config.scheduler.max_queued, own.render)


def _namespace(directory: Path, loaded: LoadedRunner) -> bytes:
    """What a block's content depends on beside its tokens: model, KV format and arithmetic."""
    spec = loaded.capacity.spec
    identity = {
        "checkpoint": str(directory.resolve()),
        "model": asdict(loaded.model),
        "kv": asdict(spec),
        "numerics": numerics_plan(spec.format),
    }
    return hashlib.blake2b(json.dumps(identity, sort_keys=True).encode()).digest()
