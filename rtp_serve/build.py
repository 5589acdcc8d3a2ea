"""The composition root: the one place where the two planes join."""

import logging
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from rtp_serve.clock import Clock, WallClock
from rtp_serve.config.engine import EngineConfig
from rtp_serve.config.kv_store import KVStoreConfig
from rtp_serve.engine.async_engine import AsyncEngine
from rtp_serve.engine.core import EngineCore
from rtp_serve.engine.exchange import Exchange
from rtp_serve.engine.executor import Executor
from rtp_serve.engine.prefix_keeper import PrefixToKeep
from rtp_serve.engine.publishing import Publishing
from rtp_serve.engine.receiving import Receiving
from rtp_serve.engine.request import cache_salt
from rtp_serve.engine.scheduler import Scheduler
from rtp_serve.engine.tiering import Tiering
from rtp_serve.engine.version import ModelVersion
from rtp_serve.errors import CheckpointError, InvalidRequest, ModelNotFound
from rtp_serve.kv_cache.block_pool import BlockPool
from rtp_serve.kv_cache.manager import KVCacheManager
from rtp_serve.kv_cache.spec import KVCacheSpec, TileOrder
from rtp_serve.kv_store.lower_tiers import LowerTiers, StoreAccess
from rtp_serve.kv_store.opening import OpenedStore, open_local
from rtp_serve.loader.cache import cache_root
from rtp_serve.loader.hub import resolve
from rtp_serve.observability.metrics import MetricsSink, PrometheusSink, TeeSink
from rtp_serve.parallel.collectives import Alone
from rtp_serve.worker.executor import InProcessExecutor
from rtp_serve.worker.rank_worker import RankWorker
from rtp_serve.worker.ranks.joining import lead
from rtp_serve.worker.ranks.local import LocalStarter
from rtp_serve.worker.ranks.plan import RankStarter
from rtp_serve.worker.ranks.shared_kv import SharedKV
from rtp_serve.worker.ranks_memory import RanksMemory, own_memory

OpenStore = Callable[[KVStoreConfig, KVCacheSpec, TileOrder, Clock, Path], OpenedStore | None]
"""Joins the node's KV store; None if there can be none."""

_log = logging.getLogger(__name__)

_MIN_STORING = 128
"""Blocks that may wait to be stored, at least: some steps' worth."""


def build_core(
    config: EngineConfig,
    clock: Clock | None = None,
    sink: MetricsSink | None = None,
    open_store: OpenStore | None = None,
    starter: RankStarter | None = None,
) -> EngineCore:
    """Bring the model, load it and put an engine around it.

    `open_store` by default opens one for this process alone, `starter` starts other ranks as
    processes of this one. Raises ConfigError, ModelNotFound, CheckpointError or RankError; nothing
    is left running then.
    """
    clock = clock or WallClock()
    sink = sink or PrometheusSink()
    started = _start(config, clock, sink, starter)
    capacity = started.worker.capacity
    cache = KVCacheManager(
        BlockPool(capacity.num_blocks),
        config.cache.block_size,
        config.cache.enable_prefix_caching,
        config.cache.enable_partial_hits,
    )
    tiering = _tiering(config.kv_store, cache, started, clock, open_store or open_local)
    exchange = Exchange(
        Receiving(cache),
        Publishing(cache.pool, capacity.spec.num_layers, config.cache.block_size),
        started.memory.exchanged if started.memory is not None else None,
    )
    started.worker.report_layers(exchange.publishing.tell)
    return EngineCore(
        started.version,
        Scheduler(config.scheduler, cache, capacity.max_model_len, exchange.receiving, tiering),
        cache,
        started.executor,
        clock,
        sink,
        exchange,
        tiering,
    )


@dataclass(frozen=True, slots=True)
class _Started:
    """The model on its ranks."""

    worker: RankWorker
    """This process's."""

    version: ModelVersion
    executor: Executor
    memory: RanksMemory | None
    """KV of all ranks; None if it cannot be seen from here."""


def _start(
    config: EngineConfig, clock: Clock, sink: MetricsSink, starter: RankStarter | None
) -> _Started:
    num_ranks = config.parallel.world_size
    if num_ranks > 1:
        leader = lead(config, starter or LocalStarter(num_ranks), clock, sink)
        return _Started(leader.worker, leader.version, leader, leader.memory())
    shared = SharedKV(secrets.token_hex(8), keeps_names=True) if config.cache.is_shared else None
    kv_memory = partial(shared.try_memory, 0) if shared is not None else None
    worker = RankWorker(config, Alone(), clock, sink, kv_memory)
    version = worker.load()
    memory = own_memory(worker.tensors, shared.name(0) if shared is not None else None)
    return _Started(worker, version, InProcessExecutor(worker), memory)


def _tiering(
    config: KVStoreConfig,
    cache: KVCacheManager,
    started: _Started,
    clock: Clock,
    open_store: OpenStore,
) -> Tiering | None:
    if not config.host.enable:
        return None
    if started.memory is None:
        _log.warning("kv_store: there are no tiers: the engine's ranks are on several nodes")
        return None
    memory = started.memory
    opened = open_store(config, memory.blocks_spec, memory.tile_order, clock, cache_root())
    if opened is None:
        return None
    arena = opened.member.arena
    name, has_remote = opened.member.path.stem, config.remote.enable
    access = StoreAccess(arena, opened.client, name, opened.disk, has_remote, opened.close)
    max_storing = max(_MIN_STORING, memory.num_blocks // 2)
    return Tiering(cache, LowerTiers(access, memory.blocks, clock, max_storing))


def build_engine(
    config: EngineConfig,
    clock: Clock | None = None,
    sink: MetricsSink | None = None,
    open_store: OpenStore | None = None,
    starter: RankStarter | None = None,
) -> AsyncEngine:
    """An engine on a thread of its own. `sink` hears every measurement beside `metrics_text()`."""
    own = PrometheusSink()
    core = build_core(config, clock, TeeSink(own, sink) if sink else own, open_store, starter)
    engine = AsyncEngine(core, config.scheduler.max_queued, own.render)
    if config.kv_store.pinned:
        engine.keep(_prefixes_to_keep(config))
    return engine


def _prefixes_to_keep(config: EngineConfig) -> list[PrefixToKeep]:
    """Those that can be told; of the others a line in the log says why."""
    # Imported here: an engine knows token ids alone, and most have no use for 6 MiB of text.
    from rtp_serve.text.chat_template import ChatTemplate
    from rtp_serve.text.pinned_prefix import prefix_tokens
    from rtp_serve.text.tokenizer import Tokenizer

    try:
        directory = resolve(config.model, config.revision, files="tokenizer")
        tokenizer = Tokenizer.from_directory(directory)
        template = ChatTemplate.from_directory(directory)
    except (CheckpointError, ModelNotFound) as error:
        _log.warning("kv_store.pinned: nothing is kept: %s", error.message)
        return []
    found = []
    for each in config.kv_store.pinned:
        try:
            token_ids = prefix_tokens(each, tokenizer, template)
        except InvalidRequest as error:
            _log.warning("kv_store.pinned: %r is not kept: %s", each.name, error.message)
            continue
        if len(token_ids) < config.cache.block_size:
            _log.warning(
                "kv_store.pinned: %r is not kept: it has %d tokens, fewer than a block of %d",
                each.name, len(token_ids), config.cache.block_size,
            )  # fmt: skip
            continue
        salt = cache_salt(each.tenant, each.cache_salt)
        found.append(PrefixToKeep(each.name, token_ids, salt))
    return found
