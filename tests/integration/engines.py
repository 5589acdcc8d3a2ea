"""Engines over one loaded model, so that many settings can be tried on the same weights."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from rtp_serve.clock import WallClock
from rtp_serve.config.engine import EngineConfig
from rtp_serve.config.model import read_model_config
from rtp_serve.engine.client import ServedModel
from rtp_serve.engine.core import EngineCore
from rtp_serve.engine.exchange import Exchange
from rtp_serve.engine.publishing import Publishing
from rtp_serve.engine.receiving import Receiving
from rtp_serve.engine.request import Request, TokenLogprobs
from rtp_serve.engine.scheduler import Scheduler
from rtp_serve.engine.version import ModelVersion
from rtp_serve.kv_cache.block_pool import BlockPool
from rtp_serve.kv_cache.manager import KVCacheManager
from rtp_serve.kv_cache.tensors import KVCacheTensors
from rtp_serve.loader.store.guard import WeightGuard
from rtp_serve.models.model import Model
from rtp_serve.observability.metrics import PrometheusSink
from rtp_serve.parallel.collectives import Alone
from rtp_serve.worker.capacity import compute_dtype, plan_capacity
from rtp_serve.worker.executor import InProcessExecutor
from rtp_serve.worker.loading import LoadedModel, load_model
from rtp_serve.worker.rank_worker import RankWorker
from rtp_serve.worker.worker import Worker


@dataclass(frozen=True, slots=True)
class SharedModel:
    """Weights and KV memory. The memory is never cleared: each engine finds the last one's data."""

    model: Model
    cache: KVCacheTensors
    served: ServedModel
    num_blocks: int
    config: EngineConfig


@dataclass(frozen=True, slots=True)
class Generated:
    """Everything a client could see of a request."""

    token_ids: tuple[tuple[int, ...], ...]
    logprobs: tuple[tuple[TokenLogprobs, ...], ...]
    num_cached_tokens: int


class PreparedRank(RankWorker):
    """A rank whose worker was made elsewhere; it loads nothing."""

    def __init__(self, worker: Worker, num_threads: int | None = None) -> None:
        super().__init__(EngineConfig(num_threads=num_threads), Alone(), WallClock())
        self._worker = worker


def load(directory: Path, **config: Any) -> SharedModel:
    engine_config = EngineConfig(model=str(directory), **config)
    model_config = read_model_config(directory)
    capacity = plan_capacity(model_config, engine_config)
    dtype = getattr(torch, compute_dtype(model_config, engine_config))
    served = ServedModel(
        "test",
        capacity.max_model_len,
        model_config.vocab_size,
        model_config.eos_token_ids,
        namespace=b"test",
    )
    return SharedModel(
        load_model(directory, model_config, dtype, capacity.max_model_len).model,
        KVCacheTensors(capacity.spec, capacity.num_blocks),
        served,
        capacity.num_blocks,
        engine_config,
    )


def make_engine(
    loaded: SharedModel,
    *,
    num_blocks: int | None = None,
    enable_prefix_caching: bool = False,
    enable_partial_hits: bool = True,
    num_threads: int | None = None,
    **scheduler: Any,
) -> EngineCore:
    """A fresh control plane and runner. `num_blocks` may be less than the memory holds."""
    config = EngineConfig(scheduler=scheduler).scheduler
    pool = BlockPool(num_blocks or loaded.num_blocks)
    cache = KVCacheManager(pool, 16, enable_prefix_caching, enable_partial_hits)
    max_len = loaded.served.max_model_len
    worker = Worker(loaded.cache, config.max_num_seqs, max_len)
    worker.add(0, LoadedModel(loaded.model, "shared", 0, WeightGuard()))
    receiving = Receiving(cache)
    return EngineCore(
        ModelVersion(0, loaded.served),
        Scheduler(config, cache, max_len, receiving),
        cache,
        InProcessExecutor(PreparedRank(worker, num_threads)),
        WallClock(),
        PrometheusSink(),
        Exchange(receiving, Publishing(pool, loaded.cache.spec.num_layers, 16)),
    )


def run(engine: EngineCore, requests: Iterable[Request]) -> dict[str, Generated]:
    """All requests at once, to their end."""
    tokens: dict[tuple[str, int], tuple[int, ...]] = {}
    logprobs: dict[tuple[str, int], tuple[TokenLogprobs, ...]] = {}
    cached: dict[str, int] = {}
    requests = list(requests)
    for request in requests:
        engine.add_request(request)
    while engine.has_work:
        for delta in engine.step():
            key = (delta.request_id, delta.index)
            tokens[key] = tokens.get(key, ()) + delta.token_ids
            logprobs[key] = logprobs.get(key, ()) + delta.logprobs
            cached[delta.request_id] = max(cached.get(delta.request_id, 0), delta.num_cached_tokens)
    engine.check_invariants()
    return {
        request.request_id: Generated(
            tuple(tokens[request.request_id, i] for i in range(request.sampling.n)),
            tuple(logprobs[request.request_id, i] for i in range(request.sampling.n)),
            cached[request.request_id],
        )
        for request in requests
    }
