"""The engine: requests in, token deltas out, one step at a time. Single-threaded and synchronous.

It knows no text, no sockets and no threads; `AsyncEngine` puts it on a thread, `LLM` calls it.
"""

import logging
from collections.abc import Sequence as Items
from dataclasses import dataclass, replace
from random import Random

from rtp_serve.clock import Clock
from rtp_serve.config.engine import ModelSource
from rtp_serve.disaggregation.memory import KVMemory
from rtp_serve.engine.client import ServedModel
from rtp_serve.engine.engine_reporter import EngineReporter
from rtp_serve.engine.exchange import Exchange
from rtp_serve.engine.executor import Executor
from rtp_serve.engine.output import ModelOutput, SchedulerOutput
from rtp_serve.engine.publishing import PublicationSink
from rtp_serve.engine.receiving import Receiver
from rtp_serve.engine.recorder import EngineRecorder
from rtp_serve.engine.request import Request, SequenceDelta
from rtp_serve.engine.request_check import check_request, max_output_tokens
from rtp_serve.engine.scheduler import Scheduler, SchedulerCounters
from rtp_serve.engine.self_benchmark import SelfBenchmark
from rtp_serve.engine.sequence import Sequence
from rtp_serve.engine.step_rate import StepRate
from rtp_serve.engine.tiering import Tiering
from rtp_serve.engine.version import ModelVersion
from rtp_serve.errors import InvalidRequest, ModelChanged
from rtp_serve.kv_cache.block import BlockHash
from rtp_serve.kv_cache.manager import KVCacheManager
from rtp_serve.kv_store.lower_tiers import LowerTiers
from rtp_serve.observability.metrics import MetricsSink
from rtp_serve.routing.report import WorkerIdentity
from rtp_serve.routing.types import PrefillPoint

logger = logging.getLogger(__name__)

_TIERS_WAIT_S = 0.01


@dataclass(frozen=True, slots=True)
class EngineStats:
    """The engine's load at one moment."""

    num_running: int
    num_waiting: int
    num_free_blocks: int
    num_blocks: int
    """Usable blocks; all of them are free when nothing runs."""

    num_cached_blocks: int
    """Those that can be found, held or free."""

    num_tokens_behind: int
    """Tokens of prompts that were to be computed after the last step before all decode."""

    token_s: float
    """What a prompt's token costs of late; 0 while that is not known."""


class EngineCore:
    """schedule → execute → update."""

    def __init__(
        self,
        version: ModelVersion,
        scheduler: Scheduler,
        cache: KVCacheManager,
        executor: Executor,
        clock: Clock,
        sink: MetricsSink,
        exchange: Exchange,
        tiering: Tiering | None = None,
    ) -> None:
        """`tiering` is the scheduler's, as is what `exchange` receives."""
        self._version = version
        self._old_versions: list[ModelVersion] = []
        self._scheduler = scheduler
        self._cache = cache
        self._executor = executor
        self._clock = clock
        self._tiering = tiering
        self._exchange = exchange
        # Nothing could run: others hold the blocks that lack.
        self._is_stalled = False
        self._rate = tiering.rate if tiering is not None else StepRate()
        self._num_tokens_behind = 0
        self._recorder = EngineRecorder(sink)
        self._reporter: EngineReporter | None = None
        self._seqs: dict[int, Sequence] = {}
        self._seqs_by_request: dict[str, dict[int, Sequence]] = {}
        self._next_seq_id = 0

    @property
    def version(self) -> ModelVersion:
        """What new requests run on."""
        return self._version

    @property
    def model(self) -> ServedModel:
        return self._version.model

    @property
    def num_old_versions(self) -> int:
        """Versions before it on which sequences still run, or that prompts are received for."""
        return len(self._old_versions)

    @property
    def has_work(self) -> bool:
        return self._scheduler.has_work and not self._is_stalled

    @property
    def stats(self) -> EngineStats:
        return EngineStats(
            num_running=self._scheduler.num_running,
            num_waiting=self._scheduler.num_waiting + self._exchange.receiving.num_asking,
            num_free_blocks=self._cache.pool.num_free,
            num_blocks=self._cache.pool.num_usable,
            num_cached_blocks=self._cache.pool.num_cached,
            num_tokens_behind=self._num_tokens_behind,
            token_s=self._rate.token_s,
        )

    @property
    def block_size(self) -> int:
        """Tokens of a block."""
        return self._cache.block_size

    @property
    def tiers(self) -> LowerTiers | None:
        """Below the device; None where there are none."""
        return self._tiering.tiers if self._tiering is not None else None

    @property
    def counters(self) -> SchedulerCounters:
        """Totals since start."""
        return self._scheduler.counters

    def validate(self, request: Request) -> None:
        """Raise InvalidRequest if this engine cannot run `request`. Reads nothing that changes."""
        check_request(request, self.model)

    def add_request(self, request: Request) -> None:
        """Queue a request's sequences. Raises InvalidRequest or ModelChanged, and then nothing has
        changed."""
        self.validate(request)
        if request.request_id in self._seqs_by_request:
            raise InvalidRequest(f"request_id {request.request_id!r} is in use", "request_id")
        version = self.version_for(request)
        seqs = {index: self._make_sequence(request, index, version) for index in request.indices}
        self._is_stalled = False
        self._seqs_by_request[request.request_id] = seqs
        for seq in seqs.values():
            self._seqs[seq.seq_id] = seq
            self._scheduler.add(seq)

    def version_for(self, request: Request) -> ModelVersion:
        """What the request would run on now. Raises ModelChanged when that is not here."""
        if not request.fingerprint:
            return self._version
        for version in (self._version, *self._old_versions):
            if request.fingerprint in (version.model.fingerprint, version.model.content):
                return version
        raise ModelChanged(
            f"the stream began with the model {request.fingerprint}; here is "
            f"{self.model.fingerprint}, {self.model.content}"
        )

    def _make_sequence(self, request: Request, index: int, version: ModelVersion) -> Sequence:
        sampling = request.sampling
        ends = () if sampling.ignore_eos else self.model.eos_token_ids
        self._next_seq_id += 1
        return Sequence(
            seq_id=self._next_seq_id,
            request=request,
            index=index,
            version=version,
            arrival_s=self._clock.monotonic(),
            max_tokens=max_output_tokens(request, self.model),
            stop_token_ids=frozenset((*ends, *sampling.stop_token_ids)),
        )

    def check(self) -> None:
        """See `Executor.check`."""
        self._executor.check()

    def load(self, source: ModelSource | None = None) -> ModelVersion:
        """A version to switch to; see `Executor.load`. The only method for another thread."""
        return self._executor.load(source)

    def switch(self, version: ModelVersion) -> None:
        """Run the requests that come from now on on `version`, which the executor has loaded."""
        if version is not self._version:
            self._old_versions.append(self._version)
            self._version = version
            self._drop_old_versions()

    def _drop_old_versions(self) -> None:
        """Release those whose last sequence has ended, or is not to come."""
        if not self._old_versions:
            return
        in_use = {seq.version.number for seq in self._seqs.values()}
        in_use |= self._exchange.receiving.versions
        for version in self._old_versions:
            if version.number not in in_use:
                self._executor.drop(version.number)
        self._old_versions = [each for each in self._old_versions if each.number in in_use]

    def abort(self, request_id: str) -> None:
        """End a request's sequences now. Unknown and finished ones are ignored."""
        for seq in self._seqs_by_request.pop(request_id, {}).values():
            if seq.finish_reason is None:
                self._scheduler.abort(seq)
                self._forget(seq)
        self._after_release()
        self._note_idle()

    @property
    def memory(self) -> KVMemory | None:
        """Where its blocks are, for exchanges with others."""
        return self._exchange.memory

    def num_cached_blocks(self, request: Request) -> int:
        """Of a prompt's full blocks, those that are here. An estimate, for any thread."""
        model = self.version_for(request).model
        chain = model.block_hashes(request.prompt_token_ids, request.cache_salt)
        return len(self._cache.pool.lookup(chain))

    def receive(self, request: Request, receiver: Receiver) -> None:
        """Reserve blocks for the prompt of a request that will come with output of another engine,
        as soon as there is room. Held until it is admitted, or `end_reception`."""
        self._exchange.receiving.reserve(request, self.version_for(request), receiver)
        self._after_release()

    def deposit(self, request_id: str, num_blocks: int) -> None:
        """So many blocks of what is received are complete, from the chain's beginning."""
        deposited = self._exchange.receiving.deposit(request_id, num_blocks)
        if deposited is not None and self._tiering is not None:
            self._tiering.store_cached(deposited.chain, deposited.namespace, deposited.salt)

    def end_reception(self, request_id: str) -> None:
        """Hold nothing for it any more; nobody writes to its blocks. Unknown ones are ignored."""
        self._exchange.receiving.end(request_id)
        self._after_release()

    def publish(self, request_id: str, sink: PublicationSink) -> None:
        """Tell `sink` of the keys and values of this request's prompt, which is yet to be added."""
        self._exchange.publishing.begin(request_id, sink)

    def end_publication(self, request_id: str) -> None:
        """Tell and hold nothing of it any more. Unknown ones are ignored."""
        self._exchange.publishing.end(request_id)
        self._after_release()

    def _after_release(self) -> None:
        """Blocks may have become free. Who waits here comes before who asks for room."""
        self._is_stalled = False
        self._drop_old_versions()
        if not self._scheduler.num_waiting:
            self._exchange.receiving.grant()
        self._recorder.state(self._scheduler, self._cache.usage)

    def store_cached(self, token_ids: Items[int], cache_salt: str) -> None:
        """Give the tiers again what the device has of a prefix."""
        if self._tiering is not None:
            chain = self.model.block_hashes(token_ids, cache_salt)
            self._tiering.store_cached(chain, self.model.namespace, cache_salt)

    def prefetch(self, chain: Items[BlockHash]) -> None:
        """Bring to the device what tiers have of a chain that requests are expected to begin with.
        Without tiers nothing happens."""
        if self._tiering is not None:
            self._is_stalled = False  # it may be the job that is waited for
            self._tiering.prefetch(chain)
            self._recorder.prefetches(self._tiering.prefetches)

    def report(self, identity: WorkerIdentity) -> EngineReporter:
        """Note from now on what the Master is to know. If nothing runs, prefills are measured
        first, for a second at most. Between steps, once an engine."""
        assert self._reporter is None, "the engine reports already"
        points = () if self._scheduler.num_running else self._measure_prefills(identity.epoch)
        self._reporter = EngineReporter(identity, self._cache.pool, points)
        return self._reporter

    def _measure_prefills(self, seed: int) -> tuple[PrefillPoint, ...]:
        return SelfBenchmark(
            executor=self._executor,
            pool=self._cache.pool,
            block_size=self.block_size,
            version=self._version,
            max_step_tokens=self._scheduler.max_step_tokens,
            clock=self._clock,
            rng=Random(seed),
        ).measure()

    def step(self) -> list[SequenceDelta]:
        """Run one step. Without work it does nothing."""
        self._scheduler.take_restored()
        if self._tiering is not None:
            self._recorder.tiers(self._tiering.tiers.counts)
            self._recorder.prefetches(self._tiering.prefetches)
        if not self._scheduler.has_candidates:
            self._wait_for_tiers()
            return []
        started_s = self._clock.monotonic()
        scheduled = self._published(self._scheduler.schedule())
        for new in scheduled.new_seqs:
            if self._seqs[new.seq_id].first_scheduled_s is None:
                self._recorder.scheduled(self._seqs[new.seq_id], started_s)
        if self._tiering is not None:
            self._tiering.begin_step(
                scheduled.num_scheduled_tokens,
                self._scheduler.is_decoding,
                self._scheduler.num_waiting,
            )
        output = self._execute(scheduled)
        ended_s = self._clock.monotonic()
        self._rate.observe(scheduled.num_tokens, ended_s - started_s)
        # A step of decodes leaves everybody a token behind, and needs no counting.
        is_decode = scheduled.is_decode and not self._scheduler.num_waiting
        self._num_tokens_behind = 0 if is_decode else self._scheduler.num_tokens_behind
        deltas = self._scheduler.update(scheduled, output)
        if self._reporter is not None:
            self._reporter.stepped(scheduled, self._seqs, started_s, ended_s)
        self._recorder.expert_loads(output.expert_loads)
        if self._tiering is not None:
            self._tiering.end_step(bool(output.errors))
        self._note_idle()
        self._record(deltas)
        self._after_release()
        if not scheduled.seq_ids:
            self._wait_for_room()
        if logger.isEnabledFor(logging.DEBUG):
            self._debug(scheduled, self._clock.monotonic() - started_s)
        return deltas

    def _note_idle(self) -> None:
        if self._tiering is not None and not self._scheduler.num_running:
            self._tiering.end_steps()

    def _published(self, scheduled: SchedulerOutput) -> SchedulerOutput:
        """The step, with reports after some layers if it computes what is published."""
        if not self._exchange.publishing.is_asked:
            return scheduled
        ends = map(int.__add__, scheduled.num_computed_tokens, scheduled.num_scheduled_tokens)
        rows = zip([self._seqs[seq_id] for seq_id in scheduled.seq_ids], ends, strict=True)
        every = self._exchange.publishing.begin_step(rows)
        return replace(scheduled, layers_per_report=every) if every else scheduled

    def _wait_for_room(self) -> None:
        """There is work, but no sequence fits into a step: others hold blocks."""
        if self._tiering is not None and self._tiering.is_active:
            self._wait_for_tiers()
            return
        assert self._exchange.is_active, "there is work but no sequence fits into a step"
        self._is_stalled = True

    def _wait_for_tiers(self) -> None:
        """Until a transfer has ended, but not so long that an arrival would notice."""
        if self._tiering is not None and self._tiering.is_active:
            self._tiering.wait(_TIERS_WAIT_S)

    def _execute(self, scheduled: SchedulerOutput) -> ModelOutput:
        try:
            output = self._executor.submit(scheduled).result()
            self._exchange.publishing.end_step()
            return output
        except BaseException:
            # Blocks are findable from the moment they are scheduled: these may hold anything.
            self._scheduler.abandon(scheduled)
            raise

    def _record(self, deltas: list[SequenceDelta]) -> None:
        now_s = self._clock.monotonic()
        seqs = [self._seqs_by_request[delta.request_id][delta.index] for delta in deltas]
        if deltas:
            got = [seq for delta, seq in zip(deltas, seqs, strict=True) if delta.token_ids]
            self._recorder.tokens(got, now_s)
        for seq in seqs:
            if seq.finish_reason is not None:
                self._forget(seq)

    def _forget(self, seq: Sequence) -> None:
        self._recorder.finished(seq, self._clock.monotonic())
        del self._seqs[seq.seq_id]
        siblings = self._seqs_by_request.get(seq.request.request_id, {}).values()
        if siblings and all(sibling.finish_reason is not None for sibling in siblings):
            del self._seqs_by_request[seq.request.request_id]

    def _debug(self, scheduled: SchedulerOutput, elapsed_s: float) -> None:
        """One line a step; when the engine falls idle, its books are checked too."""
        stats = self.stats
        num_decode = scheduled.num_scheduled_tokens.count(1)
        num_longer = scheduled.num_tokens - num_decode
        logger.debug(
            "step %d | run %d wait %d | %d decode + %d prefill tok | free %d/%d blk | %.1f ms",
            scheduled.step, stats.num_running, stats.num_waiting, num_decode, num_longer,
            stats.num_free_blocks, stats.num_blocks, elapsed_s * 1e3,
        )  # fmt: skip
        if not self.has_work:
            self.check_invariants()

    def check_invariants(self) -> None:
        """For tests and idle debug runs."""
        self._scheduler.check_invariants(self._exchange.holders())
        live = {seq.seq_id for seqs in self._seqs_by_request.values() for seq in seqs.values()
                if seq.finish_reason is None}  # fmt: skip
        assert live == set(self._seqs), f"live sequences {live} are not {set(self._seqs)}"

    def shutdown(self) -> None:
        """Release the workers, and end what goes on beside."""
        if self._tiering is not None:
            self._tiering.close()
        self._executor.shutdown()
