"""The composition root: the one place where the two planes join."""

from rtp_serve.clock import Clock, WallClock
from rtp_serve.config.engine import EngineConfig
from rtp_serve.engine.async_engine import AsyncEngine
from rtp_serve.engine.core import EngineCore
from rtp_serve.engine.scheduler import Scheduler
from rtp_serve.kv_cache.block_pool import BlockPool
from rtp_serve.kv_cache.manager import KVCacheManager
from rtp_serve.kv_cache.tensors import KVCacheTensors
from rtp_serve.observability.metrics import MetricsSink, PrometheusSink, TeeSink
from rtp_serve.worker.executor import InProcessExecutor
from rtp_serve.worker.model_versions import ModelVersions
from rtp_serve.worker.worker import Worker


def build_core(
    config: EngineConfig, clock: Clock | None = None, sink: MetricsSink | None = None
) -> EngineCore:
    """Bring the model, load it and put an engine around it.

    Raises ConfigError, ModelNotFound or CheckpointError; nothing is left running then.
    """
    clock = clock or WallClock()
    sink = sink or PrometheusSink()
    versions = ModelVersions(config, clock, sink)
    version, loaded = versions.load()
    assert loaded is not None, "nothing ran before"
    capacity = versions.first.capacity
    worker = Worker(
        KVCacheTensors(capacity.spec, capacity.num_blocks),
        config.scheduler.max_num_seqs,
        capacity.max_model_len,
    )
    worker.add(version.number, loaded)
    cache = KVCacheManager(
        BlockPool(capacity.num_blocks),
        config.cache.block_size,
        config.cache.enable_prefix_caching,
    )
    return EngineCore(
        version,
        Scheduler(config.scheduler, cache, capacity.max_model_len),
        cache,
        InProcessExecutor(worker, versions, config.num_threads),
        clock,
        sink,
    )


def build_engine(
    config: EngineConfig, clock: Clock | None = None, sink: MetricsSink | None = None
) -> AsyncEngine:
    """An engine on a thread of its own. `sink` hears every measurement beside `metrics_text()`."""
    own = PrometheusSink()
    core = build_core(config, clock, TeeSink(own, sink) if sink else own)
    return AsyncEngine(core, config.scheduler.max_queued, own.render)
