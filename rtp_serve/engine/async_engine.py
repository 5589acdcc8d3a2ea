"""EngineCore on a thread of its own, for servers.

    any thread ──submit, abort──► inbox ──► engine thread: steps while there is work
                                                │ once a step, for each sink
                                                ▼
                                        DeltaSink.deliver(deltas)

The model's kernels release the GIL, so event loops on other threads live through a long step.
"""

import asyncio
import itertools
import logging
import threading
from collections import deque
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from dataclasses import replace

from rtp_serve.config.engine import ModelSource
from rtp_serve.disaggregation.memory import KVMemory
from rtp_serve.engine.cache_answers import CacheStats, Pinned, Trimmed
from rtp_serve.engine.cache_control import CacheControl
from rtp_serve.engine.client import Reloaded, ServedModel
from rtp_serve.engine.core import EngineCore, EngineStats
from rtp_serve.engine.delta_sinks import Completion, DeltaSink, LoopStream
from rtp_serve.engine.engine_reporter import EngineReporter
from rtp_serve.engine.prefix_keeper import PrefixKeeper, PrefixToKeep
from rtp_serve.engine.publishing import PublicationSink
from rtp_serve.engine.receiving import Receiver
from rtp_serve.engine.request import FinishReason, Request, SequenceDelta
from rtp_serve.engine.sampling_params import SamplingParams
from rtp_serve.errors import (
    CheckpointError,
    ConfigError,
    EngineDead,
    InvalidRequest,
    ModelChanged,
    ModelNotFound,
    NoMaster,
    Overloaded,
    RankError,
    ReloadFailed,
    ReloadRefused,
)
from rtp_serve.kv_cache.block import BlockHash
from rtp_serve.kv_store.client import TierNews, TierPosition
from rtp_serve.kv_store.tier_counts import Tier
from rtp_serve.routing.report import Reporter, WorkerIdentity
from rtp_serve.routing.standing import FleetStanding

logger = logging.getLogger(__name__)


class AsyncEngine:
    """Thread-safe front of an EngineCore; an EngineClient."""

    def __init__(
        self, core: EngineCore, max_queued: int, render_metrics: Callable[[], str] = str
    ) -> None:
        """Starts the engine's thread. `max_queued` bounds the sequences that may wait."""
        self._core = core
        self._caches = CacheControl(core)
        # One reload at a time; held by the thread that loads.
        self._reloading = threading.Lock()
        self._max_queued = max_queued
        self._render_metrics = render_metrics
        self._inbox: deque[Callable[[], None]] = deque()
        self._num_arriving = 0
        self._changed = threading.Condition()
        self._is_stopping = False
        self._death: BaseException | None = None
        self._sinks: dict[str, DeltaSink] = {}
        self._unfinished: dict[str, set[int]] = {}
        # Ids whose abort is in the inbox: deltas of theirs are of the request that was aborted,
        # even if the id is in use again.
        self._aborting: set[str] = set()
        self._keeper: PrefixKeeper | None = None
        self._keeping: threading.Thread | None = None
        self._num_computed = itertools.count()
        self._reporter: EngineReporter | None = None
        self._thread = threading.Thread(target=self._run, name="rtp-serve-engine", daemon=True)
        self._thread.start()

    def keep(self, prefixes: Sequence[PrefixToKeep]) -> None:
        """Keep these in the node's arena from now on, beside the requests. Once an engine."""
        assert self._keeper is None, "the engine keeps prefixes already"
        self._keeper = keeper = PrefixKeeper(prefixes, self._caches, self._compute)
        self._keeping = threading.Thread(target=keeper.run, name="kv-pinned", daemon=True)
        self._keeping.start()

    def reporter(self, identity: WorkerIdentity) -> Reporter:
        """What the Master is to know of this engine, of requests that come from now on. Once an
        engine, and best before it takes any: it then measures prefills first, which takes the
        caller up to a second or so. Raises EngineDead."""
        is_first = self._reporter is None
        assert is_first, "the engine reports already"
        with self._changed:
            self._raise_if_dead()
            self._inbox.append(lambda: self._report(identity))
            self._changed.notify_all()
            self._changed.wait_for(lambda: self._is_over or self._reporter is not None)
            self._raise_if_dead()
            assert self._reporter is not None, "the engine's thread has set it"
            return self._reporter

    def _report(self, identity: WorkerIdentity) -> None:
        reporter = self._core.report(identity)
        with self._changed:
            self._reporter = reporter
            self._changed.notify_all()

    def _compute(self, token_ids: Sequence[int], cache_salt: str) -> None:
        """See `prefix_keeper.Compute`."""
        stream = Completion()
        sampling = SamplingParams(max_tokens=1, temperature=0.0)
        request_id = f"pinned-{next(self._num_computed)}"
        self.submit(
            Request(request_id, tuple(token_ids), sampling, seed=0, cache_salt=cache_salt), stream
        )
        stream.wait()
        with self._changed:
            self._inbox.append(lambda: self._core.store_cached(token_ids, cache_salt))
            self._changed.notify_all()

    @property
    def block_size(self) -> int:
        """Tokens of a block."""
        return self._core.block_size

    @property
    def store_name(self) -> str:
        """Of the tiers that it shares with others; empty without any."""
        tiers = self._core.tiers
        return tiers.store_name if tiers is not None else ""

    def store_news(self, known: Mapping[Tier, TierPosition]) -> tuple[TierNews, ...]:
        """What these tiers have that somebody does not know, see `StoreClient.news`. For any thread
        that may wait."""
        return self._caches.news(known)

    @property
    def model(self) -> ServedModel:
        """What new requests run on."""
        return self._core.model

    @property
    def memory(self) -> KVMemory | None:
        """See `EngineCore.memory`."""
        return self._core.memory

    @property
    def stats(self) -> EngineStats:
        """The load as of the last step; safe from any thread."""
        return self._core.stats

    def submit(
        self, request: Request, sink: DeltaSink, publication: PublicationSink | None = None
    ) -> None:
        """Queue a request. Raises InvalidRequest, Overloaded, ModelChanged or EngineDead; then
        nothing happened.

        `sink` gets the request's deltas until each of its sequences has a finish reason,
        `publication` its prompt's keys and values until `end_publication`.
        """
        self.check(request)
        with self._changed:
            self._raise_if_dead()
            self._raise_if_full(request)
            if request.request_id in self._sinks:
                raise InvalidRequest(f"request_id {request.request_id!r} is in use", "request_id")
            self._sinks[request.request_id] = sink
            self._unfinished[request.request_id] = set(request.indices)
            self._num_arriving += len(request.indices)
            if self._reporter is not None:
                self._reporter.requests.submitted(request)
            self._inbox.append(lambda: self._add(request, publication))
            self._changed.notify_all()

    def check(self, request: Request) -> None:
        """Raise what `submit` would raise now."""
        self._core.validate(request)
        self._core.version_for(request)
        if request.sampling.n > self._max_queued:
            raise InvalidRequest(
                f"n must be at most {self._max_queued}, the sequences that may wait here, "
                f"got {request.sampling.n}",
                "n",
            )
        with self._changed:
            self._raise_if_dead()
            self._raise_if_full(request)

    def _raise_if_full(self, request: Request) -> None:
        num_waiting = self._core.stats.num_waiting + self._num_arriving
        is_new = not request.emitted  # another engine has admitted what goes on here
        if is_new and num_waiting + len(request.indices) > self._max_queued:
            raise Overloaded(f"{num_waiting} requests are waiting; try again later")

    def abort(self, request_id: str) -> None:
        """End a request before the next step; its sink hears nothing more of it."""
        with self._changed:
            if self._sinks.pop(request_id, None) is not None:
                self._unfinished.pop(request_id, None)
                self._note_ended(request_id)
                self._aborting.add(request_id)
                self._inbox.append(lambda: self._core.abort(request_id))
                self._changed.notify_all()

    def num_cached_blocks(self, request: Request) -> int:
        """See `EngineCore.num_cached_blocks`."""
        return self._core.num_cached_blocks(request)

    def receive(self, request: Request, receiver: Receiver) -> None:
        """Reserve blocks for a prompt that another engine computes; see `EngineCore.receive`. Until
        the request is submitted and admitted, or `end_reception`. Raises as `submit` does."""
        self._core.validate(request)
        self._core.version_for(request)
        self.raise_if_dead()
        self._act(lambda: self._core.receive(request, receiver))

    def deposit(self, request_id: str, num_blocks: int) -> None:
        """So many blocks of what is received are complete, from the chain's beginning."""
        self._act(lambda: self._core.deposit(request_id, num_blocks))

    def end_reception(self, request_id: str) -> None:
        """Nobody writes to its blocks any more: take them back, unless it was admitted."""
        self._act(lambda: self._core.end_reception(request_id))

    def prefetch(self, chain: Sequence[BlockHash]) -> None:
        """See `EngineCore.prefetch`."""
        self._act(lambda: self._core.prefetch(chain))

    def end_publication(self, request_id: str) -> None:
        """Nobody reads the prompt's blocks any more, or nobody is to."""
        self._act(lambda: self._core.end_publication(request_id))

    def _act(self, action: Callable[[], None]) -> None:
        """On the engine's thread, before the next step."""
        with self._changed:
            self._inbox.append(action)
            self._changed.notify_all()

    def load(self, source: ModelSource | None = None) -> Reloaded:
        """Run the requests that come from now on on what is at `source`, None being where the
        weights that run came from. Blocks the caller's thread; the engine goes on meanwhile.

        At most two versions are held: another load first waits until the sequences of the version
        before last have ended. Raises what `Executor.load` raises, and EngineDead.
        """
        with self._reloading:
            with self._changed:
                self._changed.wait_for(lambda: self._is_over or not self._core.num_old_versions)
                self._raise_if_dead()
            before = self._core.version
            version = self._core.load(source)
            with self._changed:
                self._inbox.append(lambda: self._core.switch(version))
                self._changed.notify_all()
                self._changed.wait_for(lambda: self._is_over or self._core.version is version)
                self._raise_if_dead()
            return Reloaded("engine", version.model.fingerprint, version is not before)

    async def reload(self) -> list[Reloaded]:
        try:
            return [await asyncio.to_thread(self.load)]
        except (ReloadRefused, CheckpointError, ModelNotFound, ConfigError) as error:
            raise ReloadFailed(error.message) from error

    async def cache_stats(self) -> list[CacheStats]:
        self.raise_if_dead()
        stats = await asyncio.to_thread(self._caches.stats)
        if self._keeper is not None and stats.tiers is not None:
            stats = replace(stats, tiers=replace(stats.tiers, pinned=self._keeper.kept))
        return [stats]

    async def trim_cache(self, num_bytes: int) -> list[Trimmed]:
        self.raise_if_dead()
        return [await asyncio.to_thread(self._caches.trim, num_bytes)]

    async def pin_prefix(
        self, token_ids: Sequence[int], cache_salt: str, ttl_s: float
    ) -> list[Pinned]:
        self.raise_if_dead()
        return [await asyncio.to_thread(self._caches.pin, token_ids, cache_salt, ttl_s)]

    async def fleet_standing(self) -> FleetStanding:
        raise NoMaster

    async def generate(self, request: Request) -> AsyncGenerator[SequenceDelta, None]:
        """Stream the request's deltas; closing the generator aborts."""
        stream = LoopStream(asyncio.get_running_loop())
        self.submit(request, stream)
        num_unfinished = len(request.indices)
        try:
            while num_unfinished:
                delta = await stream.queue.get()
                if delta.finish_reason is not None:
                    num_unfinished -= 1
                yield delta
        finally:
            self.abort(request.request_id)

    async def served_model(self) -> ServedModel:
        return self._core.model

    async def check_health(self) -> None:
        self.raise_if_dead()
        try:
            self._core.check()
        except RankError as error:
            raise EngineDead(f"the engine failed: {error.message}") from error

    async def metrics_text(self) -> str:
        return self._render_metrics() + await asyncio.to_thread(self._caches.metrics_text)

    def raise_if_dead(self) -> None:
        """Raise EngineDead if a step has failed or the engine was shut down."""
        with self._changed:
            self._raise_if_dead()

    def shutdown(self) -> None:
        """Finish the step under way, abort everything and stop the thread."""
        if self._keeper is not None:
            self._keeper.close()
        with self._changed:
            self._is_stopping = True
            self._changed.notify_all()
        self._thread.join()
        if self._keeping is not None:
            self._keeping.join()

    @property
    def _is_over(self) -> bool:
        return self._death is not None or self._is_stopping

    def _raise_if_dead(self) -> None:
        if self._death is not None:
            raise EngineDead(f"the engine failed: {type(self._death).__name__}")
        if self._is_stopping:
            raise EngineDead("the engine is shutting down")

    def _add(self, request: Request, publication: PublicationSink | None) -> None:
        with self._changed:
            self._num_arriving -= len(request.indices)
            is_wanted = request.request_id in self._sinks
        try:
            self._core.add_request(request)
        except ModelChanged as error:  # the version went between `submit` and now
            self._fail(request.request_id, error.message)
            return
        if not is_wanted:  # aborted before it was taken, and counted like any other
            self._core.abort(request.request_id)
        elif publication is not None:
            self._core.publish(request.request_id, publication)

    def _fail(self, request_id: str, message: str) -> None:
        """End a request that is not in the core."""
        with self._changed:
            sink = self._sinks.pop(request_id, None)
            unfinished = self._unfinished.pop(request_id, set())
            self._note_ended(request_id)
        if sink is not None:
            sink.deliver([_abortion(request_id, index, message) for index in unfinished])

    def _run(self) -> None:
        try:
            while self._take_inbox():
                self._dispatch(self._core.step())
        except (
            Exception
        ) as error:  # the thread's top: whatever failed, every stream must hear of it
            logger.exception("the engine failed")
            with self._changed:
                self._death = error
                self._changed.notify_all()
        finally:
            self._fail_streams()
            self._core.shutdown()

    def _take_inbox(self) -> bool:
        """Wait for work and take in what arrived; False when it is time to stop."""
        self._settle()
        with self._changed:
            self._changed.notify_all()  # a load may wait for what the last step or action did
            while not (self._inbox or self._is_stopping or self._core.has_work):
                self._changed.wait()
            if self._is_stopping:
                return False
            arrived = list(self._inbox)
            self._inbox.clear()
            self._aborting.clear()
        for action in arrived:
            action()
        if arrived:
            self._settle()
        return True

    def _settle(self) -> None:
        """Blocks that can be found are there, as no step is under way."""
        if self._reporter is not None:
            self._reporter.settle()

    def _dispatch(self, deltas: list[SequenceDelta]) -> None:
        by_sink: dict[int, tuple[DeltaSink, list[SequenceDelta]]] = {}
        with self._changed:
            for delta in deltas:
                sink = self._sinks.get(delta.request_id)
                if sink is None or delta.request_id in self._aborting:
                    continue
                by_sink.setdefault(id(sink), (sink, []))[1].append(delta)
                if delta.finish_reason is not None:
                    self._note_finished(delta)
        for sink, batch in by_sink.values():
            sink.deliver(batch)

    def _note_finished(self, delta: SequenceDelta) -> None:
        unfinished = self._unfinished[delta.request_id]
        unfinished.discard(delta.index)
        if self._reporter is not None:
            self._reporter.requests.sequence_ended(delta.request_id)
        if not unfinished:
            del self._sinks[delta.request_id], self._unfinished[delta.request_id]

    def _note_ended(self, request_id: str) -> None:
        if self._reporter is not None:
            self._reporter.requests.ended(request_id)

    def _fail_streams(self) -> None:
        """Abort every open stream, so that nobody waits for a dead engine."""
        with self._changed:
            is_failure = self._death is not None
            sinks, unfinished = self._sinks, self._unfinished
            self._sinks, self._unfinished = {}, {}
            for request_id in sinks:
                self._note_ended(request_id)
        message = "the engine failed" if is_failure else "the engine is shutting down"
        for request_id, sink in sinks.items():
            sink.deliver([_abortion(request_id, i, message) for i in unfinished[request_id]])


def _abortion(request_id: str, index: int, message: str) -> SequenceDelta:
    return SequenceDelta(request_id, index, finish_reason=FinishReason.ABORT, error=message)
