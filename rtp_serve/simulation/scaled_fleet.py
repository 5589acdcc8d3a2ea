"""A trace through a fleet whose number of replicas changes: start-up takes time, going means to end
what was begun.

The fleet is aggregated. A scaler sees what was pushed a period ago, as Serve's controller does.
"""

from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from random import Random
from typing import Protocol

from rtp_serve.autoscaling.load import ReplicaLoad
from rtp_serve.autoscaling.recorder import LoadRecorder
from rtp_serve.config.routing import RoutingConfig, SloClass
from rtp_serve.routing.master import Master
from rtp_serve.routing.types import Outcome, RequestFeatures, WorkerId
from rtp_serve.simulation.engine_model import EngineModel
from rtp_serve.simulation.events import Events
from rtp_serve.simulation.requests import Served, Trace
from rtp_serve.simulation.worker import ModelledWorker

_REPORT_PERIOD_S = 0.05


@dataclass(frozen=True, slots=True)
class FleetView:
    """What a scaler is told."""

    num_running: int
    """Replicas that take requests."""

    num_target: int
    """With those that start."""

    num_unrouted: int
    """Requests that no replica has."""

    loads: Mapping[str, ReplicaLoad]
    """Of the replicas that take requests."""

    num_ongoing: float
    """Requests, those without a replica too."""


class Scaler(Protocol):
    """Says how many replicas there shall be; is asked every period."""

    def target(self, view: FleetView, now: float) -> int: ...


@dataclass(frozen=True, slots=True)
class FleetTimes:
    """What passes between cause and effect."""

    startup_s: float = 5.0
    """From the order of a replica to its first request."""

    push_period_s: float = 0.5
    """Between two figures of a replica; the scaler is asked as often."""


@dataclass(slots=True)
class ScaledRun:
    """What a replay came to."""

    served: list[Served] = field(default_factory=list)
    replica_s: float = 0.0
    """Of all replicas, from the order to the end of their last request."""

    sizes: list[tuple[float, int, int]] = field(default_factory=list)
    """(time, running, target), when one of them has changed."""


@dataclass(slots=True)
class _Replica:
    worker: ModelledWorker
    recorder: LoadRecorder
    ordered_s: float
    served: dict[str, Served] = field(default_factory=dict)
    """Requests that are there."""
    is_running: bool = False
    is_going: bool = False
    is_reporting: bool = False


class ScaledFleet:
    """Equal replicas behind the Master."""

    def __init__(
        self,
        routing: RoutingConfig,
        model: EngineModel,
        targets: SloClass,
        make_scaler: Callable[[], Scaler],
        rng: Random,
        *,
        num_initial: int = 1,
        times: FleetTimes | None = None,
    ) -> None:
        self._events = Events()
        self._routing, self._model, self._targets = routing, model, targets
        self._master = Master(routing, rng)
        self._scaler = make_scaler()
        self._times = times or FleetTimes()
        self._replicas: dict[WorkerId, _Replica] = {}
        self._unrouted: deque[tuple[str, Served]] = deque()
        self._num_ordered = 0
        self._num_open = 0
        self._run = ScaledRun()
        self._pushed = FleetView(0, num_initial, 0, {}, 0.0)
        for _ in range(num_initial):
            self._start(self._order())

    def run(self, trace: Trace) -> ScaledRun:
        """Until every request has ended."""
        assert trace.block_size == self._routing.block_size, trace.name
        run = self._run
        run.served = [Served(request) for request in trace.requests]
        self._num_open = len(run.served)
        self._plan_arrival(0)
        self._tick()
        self._events.run()
        for replica in self._replicas.values():
            run.replica_s += self._events.now - replica.ordered_s
        return run

    # -- requests --

    def _plan_arrival(self, number: int) -> None:
        if number < len(self._run.served):
            at = self._run.served[number].request.arrival_s
            self._events.at(at, lambda: self._arrive(number))

    def _arrive(self, number: int) -> None:
        self._route(str(number), self._run.served[number])
        self._plan_arrival(number + 1)

    def _route(self, request_id: str, served: Served) -> None:
        request, now = served.request, self._events.now
        decision = self._master.schedule(
            RequestFeatures(
                request_id,
                request.num_tokens,
                request.block_hashes,
                now,
                request.num_new_tokens,
                priority=request.priority,
                tenant=request.tenant,
            ),
            now,
        )
        if decision.outcome is Outcome.REJECTED:
            served.is_rejected = True
            self._num_open -= 1
            return
        if decision.outcome is Outcome.NO_WORKER:
            self._unrouted.append((request_id, served))
            return
        assert decision.worker_id is not None
        replica = self._replicas[decision.worker_id]
        replica.served[request_id] = served
        replica.recorder.arrived(request_id, request.num_tokens, now)
        replica.worker.submit(request_id, served)

    # -- replicas --

    def _order(self) -> _Replica:
        worker_id = WorkerId(f"w{self._num_ordered}")
        self._num_ordered += 1
        size = self._routing.block_size
        worker = ModelledWorker(worker_id, self._model, size, self._events, self._plan_report)
        recorder = LoadRecorder(self._targets, self._model.num_blocks * size)
        replica = self._replicas[worker_id] = _Replica(worker, recorder, self._events.now)
        return replica

    def _start(self, replica: _Replica) -> None:
        if replica.is_going:
            return
        replica.is_running = True
        self._report(replica)
        waiting, self._unrouted = self._unrouted, deque()
        for request_id, served in waiting:
            self._route(request_id, served)

    def _withdraw(self, replica: _Replica) -> None:
        """It gets nothing more, and goes when it has nothing left."""
        if replica.is_running:
            self._report(replica)
            self._master.remove(replica.worker.worker_id, self._events.now)
            replica.is_running = False
        replica.is_going = True
        self._end_if_idle(replica)

    def _end_if_idle(self, replica: _Replica) -> None:
        if replica.is_going and not replica.served:
            self._run.replica_s += self._events.now - replica.ordered_s
            del self._replicas[replica.worker.worker_id]

    def _plan_report(self, worker: ModelledWorker) -> None:
        replica = self._replicas[worker.worker_id]
        if not replica.is_reporting:
            replica.is_reporting = True
            self._events.after(_REPORT_PERIOD_S, lambda: self._report(replica))

    def _report(self, replica: _Replica) -> None:
        if replica.worker.worker_id not in self._replicas:
            return
        replica.is_reporting = False
        delta, status = replica.worker.report()
        if replica.is_running:
            if delta is not None:
                self._master.on_delta(delta)
            self._master.on_status(status, self._events.now)
        for each in status.prefilled:
            served = replica.served[each.request_id]
            replica.recorder.first_token(each.request_id, served.request.arrival_s + served.ttft_s)
        for request_id in status.finished_ids:
            served = replica.served.pop(request_id)
            ended_s = served.request.arrival_s + served.e2e_s
            replica.recorder.ended(request_id, served.request.num_new_tokens, ended_s)
            self._num_open -= 1
        self._end_if_idle(replica)

    # -- scaling --

    def _tick(self) -> None:
        staying = [each for each in self._replicas.values() if not each.is_going]
        target = self._scaler.target(self._pushed, self._events.now)
        for _ in range(target - len(staying)):
            replica = self._order()
            self._events.after(self._times.startup_s, partial(self._start, replica))
        if target < len(staying):
            staying.sort(key=lambda each: (each.is_running, len(each.served), -each.ordered_s))
            for replica in staying[: len(staying) - target]:
                self._withdraw(replica)
        self._push()
        if self._num_open:
            self._events.after(self._times.push_period_s, self._tick)

    def _push(self) -> None:
        now = self._events.now
        running = [each for each in self._replicas.values() if each.is_running]
        num_target = sum(not each.is_going for each in self._replicas.values())
        size = (len(running), num_target)
        if not self._run.sizes or self._run.sizes[-1][1:] != size:
            self._run.sizes.append((now, *size))
        self._pushed = FleetView(
            *size,
            len(self._unrouted),
            {each.worker.worker_id: each.recorder.load(now) for each in running},
            len(self._unrouted) + sum(len(each.served) for each in running),
        )
