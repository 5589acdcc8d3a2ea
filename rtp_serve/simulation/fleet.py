"""A trace through the Master and modelled engines."""

from collections.abc import Callable, Sequence
from random import Random

from rtp_serve.clock import VirtualClock
from rtp_serve.config.routing import RoutingConfig
from rtp_serve.routing.master import Master
from rtp_serve.routing.types import Outcome, RequestFeatures, Role, WorkerId
from rtp_serve.simulation.engine_model import EngineModel
from rtp_serve.simulation.events import Events
from rtp_serve.simulation.requests import Served, Trace
from rtp_serve.simulation.worker import ModelledWorker

REPORT_PERIOD_S = 0.05


class SimulatedFleet:
    """Workers report `REPORT_PERIOD_S` after something has changed, as real ones do."""

    def __init__(
        self,
        config: RoutingConfig,
        models: list[EngineModel],
        rng: Random,
        clock_s: Callable[[], float] | None = None,
        roles: Sequence[Role] | None = None,
    ) -> None:
        """One worker a model, of the role at its place; without roles all do everything. `clock_s`
        is a real clock that decisions are timed with."""
        self._events = Events(VirtualClock())
        self._config = config
        self._clock_s = clock_s
        self.master = Master(config, rng)
        self._workers = {
            worker_id: ModelledWorker(
                worker_id, model, config.block_size, self._events, self._plan_report, role
            )
            for worker_id, model, role in zip(
                (WorkerId(f"w{number}") for number in range(len(models))),
                models,
                roles or [Role.MIXED] * len(models),
                strict=True,
            )
        }
        self._reporting: set[WorkerId] = set()
        self._arrived: Callable[[int], None] | None = None
        for worker in self._workers.values():
            self._report(worker)

    def run(self, trace: Trace, arrived: Callable[[int], None] | None = None) -> list[Served]:
        """What became of each request, when nothing is left to do. `arrived` is told how many have
        come, at each of them."""
        assert trace.block_size == self._config.block_size, trace.name
        self._arrived = arrived
        served = [Served(request) for request in trace.requests]
        if served:
            self._plan_arrival(served, 0)
        self._events.run()
        return served

    def _plan_arrival(self, served: list[Served], number: int) -> None:
        def arrive() -> None:
            self._arrive(number, served[number])
            if self._arrived is not None:
                self._arrived(number + 1)
            if number + 1 < len(served):
                self._plan_arrival(served, number + 1)

        self._events.at(served[number].request.arrival_s, arrive)

    def _arrive(self, number: int, served: Served) -> None:
        request, now = served.request, self._events.now
        features = RequestFeatures(
            str(number),
            request.num_tokens,
            request.block_hashes,
            now,
            request.num_new_tokens,
            priority=request.priority,
            tenant=request.tenant,
        )
        start = self._clock_s() if self._clock_s else 0.0
        decision = self.master.schedule(features, now)
        if self._clock_s:
            served.decision_s = self._clock_s() - start
        if decision.outcome is not Outcome.ROUTED:
            served.is_rejected = True
            return
        assert decision.worker_id is not None
        assert decision.decode_worker_id is not None
        worker = self._workers[decision.worker_id]
        decode = self._workers[decision.decode_worker_id]
        worker.submit(number, served, None if decode is worker else decode)

    def _plan_report(self, worker: ModelledWorker) -> None:
        if worker.worker_id not in self._reporting:
            self._reporting.add(worker.worker_id)
            self._events.after(REPORT_PERIOD_S, lambda: self._report(worker))

    def _report(self, worker: ModelledWorker) -> None:
        self._reporting.discard(worker.worker_id)
        delta, status = worker.report()
        if delta is not None:
            self.master.on_delta(delta)
        self.master.on_status(status, self._events.now)
