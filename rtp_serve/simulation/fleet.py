"""A trace through the Master and modelled engines."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from random import Random

from rtp_serve.config.routing import RoutingConfig
from rtp_serve.routing.master import Master
from rtp_serve.routing.types import Outcome, RequestFeatures, Role, WorkerId
from rtp_serve.simulation.engine_model import EngineModel
from rtp_serve.simulation.events import Events
from rtp_serve.simulation.requests import Served, TracedRequest
from rtp_serve.simulation.served_table import ServedTable
from rtp_serve.simulation.worker import ModelledWorker

REPORT_PERIOD_S = 0.05


class SimulatedFleet:
    """Workers report `REPORT_PERIOD_S` after something has changed, as real ones do. A fleet plays
    once."""

    def __init__(
        self,
        config: RoutingConfig,
        models: list[EngineModel],
        rng: Random,
        roles: Sequence[Role] | None = None,
    ) -> None:
        """One worker a model, of the role at its place; without roles all do everything."""
        self._events = Events()
        self._config = config
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
        self._in_flight: dict[str, Served] = {}
        self._table = ServedTable()
        for worker in self._workers.values():
            self._report(worker)

    def play(
        self, requests: Iterable[TracedRequest], arrived: Callable[[int], None] | None = None
    ) -> ServedTable:
        """What became of each request, when nothing is left to do. They are taken one by one, when
        they arrive, and hash blocks of `config.block_size` tokens. `arrived` is told how many have
        come, at each of them."""
        self._plan_arrival(iter(requests), arrived or (lambda _: None))
        self._events.run()
        assert not self._in_flight, f"{len(self._in_flight)} requests have not ended"
        return self._table

    def _plan_arrival(
        self, requests: Iterator[TracedRequest], arrived: Callable[[int], None]
    ) -> None:
        request = next(requests, None)
        if request is None:
            return

        def arrive() -> None:
            self._arrive(request)
            arrived(len(self._table))
            self._plan_arrival(requests, arrived)

        self._events.at(request.arrival_s, arrive)

    def _arrive(self, request: TracedRequest) -> None:
        request_id, now, served = str(len(self._table)), self._events.now, Served(request)
        self._table.come(request)
        features = RequestFeatures(
            request_id,
            request.num_tokens,
            request.block_hashes,
            now,
            request.num_new_tokens,
            priority=request.priority,
            tenant=request.tenant,
        )
        decision = self.master.schedule(features, now)
        if decision.outcome is not Outcome.ROUTED:
            served.is_rejected = True
            self._table.end(int(request_id), served)
            return
        assert decision.worker_id is not None
        assert decision.decode_worker_id is not None
        worker = self._workers[decision.worker_id]
        decode = self._workers[decision.decode_worker_id]
        self._in_flight[request_id] = served
        worker.submit(request_id, served, None if decode is worker else decode)

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
        for request_id in status.finished_ids:
            self._table.end(int(request_id), self._in_flight.pop(request_id))
