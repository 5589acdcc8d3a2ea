"""A Master that answers in bytes. Knows no Ray."""

import logging
from collections import deque
from dataclasses import dataclass, replace
from itertools import islice
from random import Random

from deployments.master.wire import (
    Heard,
    Ruling,
    SnapshotPart,
    decode_ended,
    decode_features,
    decode_report,
    decode_wanted,
    encode,
    ruling_of,
)
from rtp_serve.clock import Clock
from rtp_serve.config.routing import RoutingConfig
from rtp_serve.routing.block_stream import StreamOutcome, Tier
from rtp_serve.routing.master import Master
from rtp_serve.routing.standing import DecisionRecord, FleetStanding
from rtp_serve.routing.types import Decision, Outcome

WARM_UP_S = 1.0
"""Workers report within this time. Before it is over, those that were quicker would get all."""

MAX_SNAPSHOT_BLOCKS = 1 << 16
"""About 2 MB: a snapshot's holders are told until they have so many together."""

_NUM_KEPT = 32
_NUM_CANDIDATES = 8

_FORGET_AFTER = 6.0
"""A worker that has been silent for so many times the limit is gone."""

logger = logging.getLogger("rtp_serve.master")


@dataclass(frozen=True, slots=True)
class _Kept:
    decided_s: float
    decision: Decision


class MasterService:
    """For one thread."""

    def __init__(self, config: RoutingConfig, clock: Clock, rng: Random, instance: str) -> None:
        """`instance` differs from that of any Master before."""
        self._config = config
        self._clock = clock
        self._instance = instance
        self._master = Master(config, rng)
        self._began_s = clock.monotonic()
        self._kept: deque[_Kept] = deque(maxlen=_NUM_KEPT)

    @property
    def _is_ready(self) -> bool:
        return self._clock.monotonic() - self._began_s >= WARM_UP_S

    def report(self, data: bytes) -> bytes:
        """A WorkerReport in, what was Heard of it out."""
        report, master, now = decode_report(data), self._master, self._clock.monotonic()
        status = report.status
        is_new = not master.knows(status.worker_id)
        if is_new:  # its blocks need its slot
            master.on_status(status, now)
        # Of a store the answer says what is known.
        told = [(each.tier, master.on_delta(each)) for each in report.deltas]
        told += [(each.tier, master.on_page(each)) for each in report.pages]
        has_gap = (Tier.DEVICE, StreamOutcome.NEEDS_SNAPSHOT) in told
        lost = () if is_new else master.on_status(status, now)
        if lost:
            logger.info("%s has lost %s", status.worker_id, ", ".join(lost))
        advice = master.take_advice(status.worker_id)
        for each in advice:
            logger.info("%s is to have what %s has: %s", each.target, each.source, each.reason)
        return encode(
            Heard(
                self._instance,
                has_gap,
                tuple(each.hashes for each in advice),
                master.tier_positions(status.store),
            )
        )

    def schedule(self, data: bytes) -> bytes:
        """RequestFeatures in, a Ruling out."""
        return encode(self._rule(data))

    def _rule(self, data: bytes) -> Ruling:
        request, now = decode_features(data), self._clock.monotonic()
        if not self._is_ready:
            return Ruling(Outcome.NO_WORKER, "the Master waits for its workers' first word")
        if self._master.is_in_flight(request.request_id):
            return Ruling(Outcome.NO_WORKER, "a request of this name is in flight")
        decision = self._master.schedule(replace(request, arrival_s=now), now)
        self._kept.append(_Kept(now, decision))
        if logger.isEnabledFor(logging.DEBUG):
            logger.debug("%s", describe(decision))
        return ruling_of(decision)

    def ended(self, data: bytes) -> None:
        """Of `Ended`."""
        ended, master, now = decode_ended(data), self._master, self._clock.monotonic()
        for request_id in ended.lost:
            master.on_lost(request_id, now)
        for request_id in ended.finished:
            master.on_finished(request_id, now)
        for worker_id in ended.left:
            master.remove(worker_id, now)

    def snapshot(self, data: bytes) -> bytes:
        """SnapshotWanted in, a SnapshotPart out."""
        wanted, now = decode_wanted(data), self._clock.monotonic()
        snapshot = self._master.snapshot(now, with_blocks=False)
        if wanted.with_blocks:
            changed = self._master.changed_blocks(wanted.known, MAX_SNAPSHOT_BLOCKS)
            snapshot = replace(snapshot, blocks=tuple(changed))
        return encode(SnapshotPart(self._instance, self._is_ready, snapshot))

    def figures(self) -> bytes:
        """A FleetStanding."""
        now = self._clock.monotonic()
        return encode(
            FleetStanding(
                self._instance,
                now - self._began_s,
                self._master.num_in_flight,
                self._master.standings(now),
                tuple(_record(each, now) for each in reversed(self._kept)),
            )
        )

    def expire(self) -> None:
        """To be called every second."""
        now = self._clock.monotonic()
        for request_id, state in self._master.expire(now).items():
            logger.info("%s is given up: %s", request_id, state.value)
        for each in self._master.standings(now):
            if each.silent_s > _FORGET_AFTER * self._config.worker_silence_s:
                logger.info("%s has been silent for %.0f s: gone", each.worker_id, each.silent_s)
                self._master.remove(each.worker_id, now)


def describe(decision: Decision) -> str:
    """One line with every number that the decision was made by."""
    rows = "; ".join(
        f"{each.worker_id}: cost {each.cost:.4g}, wait {each.wait_s:.4g} s, "
        f"prefill {each.prefill_s:.4g} s, load {each.load_s:.4g} s, "
        f"cached {each.num_cached_tokens}"
        for each in decision.table()
    )
    chosen = decision.worker_id or "nobody"
    if decision.decode_worker_id not in (None, decision.worker_id):
        chosen += f" → {decision.decode_worker_id}"
    return (
        f"{decision.request_id}: {decision.outcome.value}, {chosen}, class {decision.slo_class}, "
        f"{decision.reason} [{rows}]"
    )


def _record(kept: _Kept, now: float) -> DecisionRecord:
    decision = kept.decision
    return DecisionRecord(
        decision.request_id,
        now - kept.decided_s,
        decision.slo_class,
        decision.outcome.value,
        decision.reason,
        decision.worker_id or "",
        decision.decode_worker_id or "",
        decision.predicted_ttft_s,
        decision.num_cached_tokens,
        tuple(islice(decision.table(), _NUM_CANDIDATES)),
    )
