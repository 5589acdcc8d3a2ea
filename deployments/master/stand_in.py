"""Decides in an ingress while the Master is silent: the same library on its last snapshot."""

from random import Random

from deployments.master.wire import Ruling, SnapshotPart, SnapshotWanted, ruling_of
from rtp_serve.clock import Clock
from rtp_serve.config.routing import RoutingConfig
from rtp_serve.routing.master import Master
from rtp_serve.routing.snapshot import HolderBlocks, RoutingSnapshot, WorkerSnapshot
from rtp_serve.routing.types import Outcome, RequestFeatures, WorkerId


class StandIn:
    """Keeps what the Master told last; a Master is made of it when one is needed."""

    def __init__(self, config: RoutingConfig, rng: Random, clock: Clock) -> None:
        self._config = config
        self._rng = rng
        self._clock = clock
        self._workers: tuple[WorkerSnapshot, ...] = ()
        self._blocks: dict[str, HolderBlocks] = {}
        self._taken_s = self._received_s = 0.0
        self._master: Master | None = None

    @property
    def worker_ids(self) -> frozenset[WorkerId]:
        return frozenset(each.status.worker_id for each in self._workers)

    @property
    def wanted(self) -> SnapshotWanted:
        """What to ask the Master for."""
        return SnapshotWanted(
            known={name: (each.epoch, each.version) for name, each in self._blocks.items()}
        )

    def take(self, part: SnapshotPart) -> None:
        """The Master answers: whatever was decided without it, it will hear from its workers."""
        self._master = None
        self._workers = part.snapshot.workers
        self._taken_s, self._received_s = part.snapshot.taken_s, self._clock.monotonic()
        for each in part.snapshot.blocks:
            self._blocks.pop(each.holder, None)  # it is the one that is known for the least time
            self._blocks[each.holder] = each
        for gone in self._blocks.keys() - self.worker_ids:
            del self._blocks[gone]

    def schedule(self, request: RequestFeatures) -> Ruling:
        """Decide, and book it here."""
        if not self._workers:
            return Ruling(Outcome.NO_WORKER, "the Master has told of no worker")
        # Time makes nobody silent here: whom Serve has withdrawn is excluded.
        master = self._master = self._master or self._restored()
        if master.is_in_flight(request.request_id):
            return Ruling(Outcome.NO_WORKER, "a request of this name is in flight")
        return ruling_of(master.schedule(request, self._clock.monotonic()))

    def ended(self, request_id: str) -> None:
        """Of one that may have been booked here."""
        if self._master is not None:
            self._master.on_finished(request_id, self._clock.monotonic())

    def _restored(self) -> Master:
        snapshot = RoutingSnapshot(self._taken_s, self._workers, tuple(self._blocks.values()))
        return Master.restored(self._config, self._rng, snapshot, self._received_s)
