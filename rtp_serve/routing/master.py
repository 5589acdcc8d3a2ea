"""The Master: what workers said, what was sent to them, and where the next request goes.

Pure: time is an argument, and so is the randomness of the policies that want some. All of its state
is soft; workers' reports build it again.
"""

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from math import inf
from random import Random

import numpy as np

from rtp_serve.config.routing import DEFAULT_CLASS, RoutingConfig, SloClass
from rtp_serve.kv_cache.block import BlockHash
from rtp_serve.kv_store.client import TierPosition
from rtp_serve.routing.admission import Admission
from rtp_serve.routing.assumed_blocks import AssumedBlocks
from rtp_serve.routing.block_stream import BlockDelta, SnapshotPage, StreamOutcome, Tier
from rtp_serve.routing.decode import choose_decode
from rtp_serve.routing.estimates import Estimates
from rtp_serve.routing.fleet import Fleet
from rtp_serve.routing.ledger import Entry, Ledger, RequestState
from rtp_serve.routing.lower_tiers import LowerTiers
from rtp_serve.routing.policies.registry import make_policy
from rtp_serve.routing.predictor import PredictorSettings, PrefillPredictor
from rtp_serve.routing.prefix_index import PrefixIndex
from rtp_serve.routing.replication import HotPrefixes
from rtp_serve.routing.shared_benchmarks import SharedBenchmarks
from rtp_serve.routing.snapshot import HolderBlocks, RoutingSnapshot, WorkerSnapshot
from rtp_serve.routing.standing import WorkerStanding
from rtp_serve.routing.types import (
    Candidates,
    Choice,
    Decision,
    Ints,
    Outcome,
    PrefillPoint,
    Replication,
    RequestFeatures,
    Role,
    WorkerId,
    WorkerStatus,
)

_PREFILL = frozenset({Role.MIXED, Role.PREFILL})
_DECODE = frozenset({Role.DECODE})
_ITS_OWN = frozenset({Role.MIXED})

_MEMORY = 0.02
"""Weight of the latest request in the mean prefill time."""

_MAX_ADVICE = 4
"""Of the latest, for a worker that has not heard of it."""


class Master:
    """Composes index, ledger, predictor, admission and policy."""

    def __init__(self, config: RoutingConfig, rng: Random) -> None:
        self._config = config
        self._rng = rng
        self._policy = make_policy(config.policy, config.knobs)
        self._fleet = Fleet(config.max_workers)
        self._index = PrefixIndex(self._fleet.slots)
        self._lower = LowerTiers(self._fleet.stores, config.tiers)
        self._assumed = AssumedBlocks()
        self._ledger = Ledger(config.max_workers)
        self._predictor = PrefillPredictor(
            config.max_workers,
            PredictorSettings(
                config.predictor.forgetting,
                config.predictor.outlier_clip,
                default_tokens_per_s=config.predictor.default_tokens_per_s,
            ),
        )
        self._benchmarks = SharedBenchmarks(self._predictor)
        self._estimates = Estimates(
            config.block_size, self._fleet, self._ledger, self._predictor, self._lower
        )
        self._admission = Admission(config.admission)
        self._hot = HotPrefixes(config.replication) if config.replication.enable else None
        self._advice: dict[WorkerId, deque[Replication]] = {}
        self._mean_prefill_s = 0.0

    @property
    def num_in_flight(self) -> int:
        """Requests that were sent and have not ended."""
        return len(self._ledger)

    # -- what workers say --

    def on_delta(self, delta: BlockDelta) -> StreamOutcome:
        """A worker's blocks have changed. NEEDS_SNAPSHOT: ask it for one."""
        if delta.tier is not Tier.DEVICE:
            return self._lower.apply(delta)
        if delta.holder not in self._fleet.slots:
            return StreamOutcome.NEEDS_SNAPSHOT
        return self._index.apply(delta)

    def on_page(self, page: SnapshotPage) -> StreamOutcome:
        """A part of all blocks that a worker has."""
        if page.tier is not Tier.DEVICE:
            return self._lower.apply_page(page)
        if page.holder not in self._fleet.slots:
            return StreamOutcome.NEEDS_SNAPSHOT
        return self._index.apply_page(page)

    def on_status(self, status: WorkerStatus, now: float) -> tuple[str, ...]:
        """A worker's report; requests that it has lost."""
        known = self._fleet.epoch(status.worker_id)
        if known is not None and status.epoch < known:
            return ()
        lost: tuple[str, ...] = ()
        if known is not None and status.epoch > known:
            lost = self._lose(self._ledger.at(self._slot(status.worker_id)), now)
            self._index.begin(status.worker_id, status.epoch)
        slot = self._fleet.update(status, now)
        if known != status.epoch:
            self._benchmarks.start(slot, status.role, status.self_benchmark)
        for each in status.prefilled:
            self._on_first_token(slot, each.request_id, each.point, now)
        for request_id in status.finished_ids:
            if not self._ledger.has_passed(slot, request_id):
                self._end(request_id, RequestState.FINISHED, now)
        self._ledger.confirm(slot, status.waiting_ids, status.running_ids, now)
        mentioned = frozenset(status.waiting_ids + status.running_ids)
        return lost + self._lose(self._ledger.missing(slot, mentioned), now)

    def on_finished(self, request_id: str, now: float) -> None:
        """A request has ended, well or not: its worker said so, or who waited for it."""
        self._end(request_id, RequestState.FINISHED, now)

    def on_lost(self, request_id: str, now: float) -> None:
        """Whoever sent it could not reach its worker."""
        self._end(request_id, RequestState.LOST, now)

    def remove(self, worker_id: WorkerId, now: float) -> tuple[str, ...]:
        """A worker is gone for good, if it was there; requests that went with it."""
        if not self.knows(worker_id):
            return ()
        lost = self._lose(self._ledger.at(self._slot(worker_id)), now)
        self._index.forget(worker_id)
        self._advice.pop(worker_id, None)
        self._benchmarks.learned(self._fleet.remove(worker_id))
        for store in self._fleet.unused_stores():
            self._lower.forget(store)
            self._fleet.stores.remove(store)
        return lost

    def expire(self, now: float) -> dict[str, RequestState]:
        """Give up what is overdue and pass over who is silent; to be called every second or so."""
        config = self._config
        self._fleet.silence(now, config.worker_silence_s)
        found = self._ledger.overdue(now, config.transit_timeout_s, config.in_flight_timeout_s)
        for request_id, state in found.items():
            self._end(request_id, state, now)
        return found

    # -- what is asked --

    def knows(self, worker_id: WorkerId) -> bool:
        """Whether it has reported."""
        return worker_id in self._fleet.slots

    def is_in_flight(self, request_id: str) -> bool:
        """Whether a request of this name was sent and has not ended."""
        return self._ledger.get(request_id) is not None

    def schedule(self, request: RequestFeatures, now: float) -> Decision:
        """Choose workers for a request and book what it needs, or say why not."""
        slots, free_blocks = self._prefill_slots(request)
        if not len(slots):
            return Decision(
                request.request_id,
                Outcome.NO_WORKER,
                "no worker can prefill",
                slo_class=request.slo_class,
            )
        cached_blocks = self._index.match(request.block_hashes, self._assumed.masks)
        candidates = self._estimates.make(
            request, slots, cached_blocks, free_blocks, self._mean_prefill_s, now
        )
        slo = self._slo(request)
        limit_s = self._admission.limit_s(request, slo, now)
        if limit_s < inf:
            least_s = float(candidates.ttft_s.min())
            if least_s > limit_s:
                return self._rejection(request, candidates, least_s, limit_s, now)
        choice = self._policy.choose(request, candidates, self._rng)
        return self._book(request, candidates, choice, slo, now)

    def tier_positions(self, store: str) -> dict[Tier, TierPosition]:
        """How far it has followed the tiers of a store."""
        return self._lower.positions(store)

    def take_advice(self, worker_id: WorkerId) -> tuple[Replication, ...]:
        """What would be worth bringing to this worker, of decisions since the last call."""
        return tuple(self._advice.pop(worker_id, ()))

    def standings(self, now: float) -> tuple[WorkerStanding, ...]:
        """Every worker at this moment, by name."""
        fleet, ledger = self._fleet, self._ledger
        waits = ledger.wait_s(fleet.slots.size, now)
        found = (
            WorkerStanding(
                status.worker_id,
                status.role,
                status.node_id,
                fleet.is_usable(slot),
                now - seen_s,
                float(waits[slot]),
                int(ledger.num_in_flight[slot]),
                status.num_decoding,
                status.num_blocks,
                status.num_free_blocks,
                int(ledger.reserved_blocks[slot]),
                self._index.num_blocks(status.worker_id),
                self._lower.num_blocks(status.store),
            )
            for slot, status, seen_s in fleet.statuses()
        )
        return tuple(sorted(found, key=lambda each: each.worker_id))

    # -- handing over --

    def changed_blocks(
        self, known: Mapping[str, tuple[int, int]], max_blocks: int
    ) -> Iterator[HolderBlocks]:
        """Whole holders that are at another (epoch, version) than `known` says, until they have
        `max_blocks` together: those first that are not in it, then in its order."""
        versions = {name: (epoch, version) for name, epoch, version in self._index.versions()}
        fresh = [name for name in versions if name not in known]
        for name in (*fresh, *known):
            if name in versions and versions[name] != known.get(name):
                blocks = tuple(self._index.blocks(name))
                yield HolderBlocks(name, *versions[name], blocks)
                max_blocks -= len(blocks)
                if max_blocks <= 0:
                    return

    def snapshot(self, now: float, *, with_blocks: bool = True) -> RoutingSnapshot:
        """What another Master can go on from."""
        fleet, ledger = self._fleet, self._ledger
        waits = ledger.wait_s(fleet.slots.size, now)
        workers = tuple(
            WorkerSnapshot(
                replace(status, waiting_ids=(), running_ids=(), prefilled=(), finished_ids=()),
                seen_s,
                self._predictor.coefficients(slot),
                float(waits[slot]),
                int(ledger.reserved_blocks[slot]),
            )
            for slot, status, seen_s in fleet.statuses()
        )
        blocks = tuple(
            HolderBlocks(holder, epoch, version, tuple(self._index.blocks(holder)))
            for holder, epoch, version in (self._index.versions() if with_blocks else ())
        )
        return RoutingSnapshot(now, workers, blocks)

    @classmethod
    def restored(
        cls, config: RoutingConfig, rng: Random, snapshot: RoutingSnapshot, now: float
    ) -> "Master":
        """Knows what the other one knew; `now` is the snapshot's time on this one's clock.

        What it sent is one entry a worker, in transit: it lasts as long as the queue was predicted
        to, and is given up like any request that no worker reports.
        """
        master = cls(config, rng)
        for each in snapshot.workers:
            seen_s = now - (snapshot.taken_s - each.seen_s)
            slot = master._fleet.update(each.status, seen_s)
            master._predictor.restore(slot, each.coefficients)
            if each.pending_s or each.reserved_blocks:
                name = f"before {each.status.worker_id}"
                blocks = each.reserved_blocks
                master._ledger.create(Entry(name, slot, slot, 0, each.pending_s, 0, blocks, now))
                master._ledger.sent(name, now)
        for held in snapshot.blocks:
            page = SnapshotPage(held.holder, held.epoch, held.version, 0, 1, held.hashes)
            master._index.apply_page(page)
        return master

    # -- deciding --

    def _prefill_slots(self, request: RequestFeatures) -> tuple[Ints, Ints]:
        """Of workers that can take it, and how many blocks each has free."""
        slots = self._without_excluded(self._fleet.usable(_PREFILL), request)
        demand = self._demand(request)
        free, num_fitting = self._estimates.free_blocks(slots, demand)
        if 0 < num_fitting < len(slots) and len(self._fleet.usable(_ITS_OWN)):
            fits = free >= demand
            return slots[fits], free[fits]
        return slots, free

    def _without_excluded(self, slots: Ints, request: RequestFeatures) -> Ints:
        if not request.excluded:
            return slots
        excluded = [self._fleet.slots.get(each) for each in request.excluded]
        return slots[~np.isin(slots, [each for each in excluded if each is not None])]

    def _book(
        self,
        request: RequestFeatures,
        candidates: Candidates,
        choice: Choice,
        slo: SloClass,
        now: float,
    ) -> Decision:
        at = choice.position
        slot = int(candidates.slots[at])
        decode_slot = self._decode_slot(request, slot, slo)
        if decode_slot is None:
            return Decision(
                request.request_id,
                Outcome.NO_WORKER,
                f"no decode worker has {self._demand(request)} blocks free",
                slo_class=request.slo_class,
            )
        num_cached = int(candidates.num_cached_tokens[at])
        prefill_s = float(candidates.prefill_s[at] + candidates.load_s[at])
        num_new = request.num_tokens - num_cached
        advice = None
        if self._hot is not None:
            size = self._config.block_size
            advice = self._hot.note(request.block_hashes, size, candidates, now)
        if advice is not None:
            self._advice.setdefault(advice.target, deque(maxlen=_MAX_ADVICE)).append(advice)
        missing = request.block_hashes[num_cached // self._config.block_size :]
        self._ledger.create(
            Entry(
                request.request_id,
                slot,
                decode_slot,
                num_new,
                prefill_s,
                self._num_blocks(request.num_tokens),
                self._demand(request),
                now,
                missing,
            )
        )
        self._assumed.assume(slot, missing)
        self._ledger.sent(request.request_id, now)
        self._admission.admitted(request, num_new, prefill_s, now)
        memory = _MEMORY if self._mean_prefill_s else 1.0
        self._mean_prefill_s += memory * (prefill_s - self._mean_prefill_s)
        return Decision(
            request.request_id,
            Outcome.ROUTED,
            choice.reason,
            candidates.worker_ids[at],
            self._fleet.worker_id(decode_slot),
            float(candidates.wait_s[at]) + prefill_s,
            num_cached,
            candidates=candidates,
            costs=choice.costs,
            slo_class=request.slo_class,
            replication=advice,
        )

    def _decode_slot(self, request: RequestFeatures, slot: int, slo: SloClass) -> int | None:
        if self._fleet.role(slot) is Role.MIXED:
            return slot
        fleet = self._fleet
        slots = self._without_excluded(fleet.usable(_DECODE), request)
        demand = self._demand(request)
        free, _ = self._estimates.free_blocks(slots, demand)
        itl_target_s = slo.itl_s or inf
        return choose_decode(
            slots, free, fleet.num_blocks[slots], fleet.itl_s[slots], demand, itl_target_s
        )

    def _rejection(
        self,
        request: RequestFeatures,
        candidates: Candidates,
        least_s: float,
        limit_s: float,
        now: float,
    ) -> Decision:
        after_s = self._admission.retry_after_s(least_s - limit_s, len(candidates), now)
        return Decision(
            request.request_id,
            Outcome.REJECTED,
            f"first token in {least_s:.3g} s at the soonest, {limit_s:.3g} s are allowed in class "
            f"{request.slo_class!r}",
            predicted_ttft_s=least_s,
            retry_after_s=after_s,
            candidates=candidates,
            costs=candidates.ttft_s,
            slo_class=request.slo_class,
        )

    # -- small things --

    def _slot(self, worker_id: WorkerId) -> int:
        slot = self._fleet.slots.get(worker_id)
        assert slot is not None, f"{worker_id} is unknown"
        return slot

    def _slo(self, request: RequestFeatures) -> SloClass:
        classes = self._config.slo_classes
        return classes.get(request.slo_class) or classes[DEFAULT_CLASS]

    def _num_blocks(self, num_tokens: int) -> int:
        return -(-num_tokens // self._config.block_size)

    def _demand(self, request: RequestFeatures) -> int:
        """Blocks that it holds at most, as far as room is kept for it."""
        to_come = min(request.max_new_tokens, self._config.reserve_new_tokens)
        return self._num_blocks(request.num_tokens + to_come)

    def _on_first_token(
        self, slot: int, request_id: str, point: PrefillPoint | None, now: float
    ) -> None:
        entry = self._ledger.first_token(slot, request_id, now)
        if entry is not None:
            self._assumed.settle(entry.slot, entry.assumed)
        if point is not None:
            self._benchmarks.learned(slot)
            self._predictor.learn(slot, point)

    def _end(self, request_id: str, state: RequestState, now: float) -> None:
        entry = self._ledger.end(request_id, state, now)
        if entry is not None and not entry.has_first_token:
            self._assumed.settle(entry.slot, entry.assumed)

    def _lose(self, request_ids: Sequence[str], now: float) -> tuple[str, ...]:
        for request_id in request_ids:
            self._end(request_id, RequestState.LOST, now)
        return tuple(request_ids)

    def cached_blocks(self, hashes: Sequence[BlockHash]) -> dict[WorkerId, int]:
        """How many of them each worker has, from the beginning; workers without are left out."""
        lengths = self._index.match(tuple(hashes))
        return {
            self._fleet.worker_id(int(slot)): int(lengths[slot]) for slot in lengths.nonzero()[0]
        }

    def check_invariants(self) -> None:
        self._fleet.slots.check_invariants()
        self._index.check_invariants()
        self._lower.check_invariants()
        waiting = (each for each in self._ledger.entries() if not each.has_first_token)
        self._assumed.check_invariants((each.slot, each.assumed) for each in waiting)
        self._ledger.check_invariants()
