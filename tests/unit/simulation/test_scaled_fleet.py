from random import Random

import pytest

from rtp_serve.config.autoscaling import AutoscalingConfig
from rtp_serve.config.routing import RoutingConfig
from rtp_serve.simulation.diurnal import Diurnal, diurnal
from rtp_serve.simulation.engine_model import EngineModel
from rtp_serve.simulation.ongoing_requests import OngoingRequests, OngoingRequestsScaler
from rtp_serve.simulation.planned_replicas import PlannedReplicas
from rtp_serve.simulation.requests import Trace, TracedRequest
from rtp_serve.simulation.scaled_fleet import FleetView, ScaledFleet, ScaledRun, Scaler

MODEL = EngineModel(prefill_base_s=0.0, prefill_token_s=0.001, prefill_attention_s=0.0)
CONFIG = AutoscalingConfig(max_replicas=8, tokens_per_s=1000)
BURST = tuple(TracedRequest(1 + i * 0.1, 500, 2, ()) for i in range(200))


class Fixed:
    """So many replicas from a time on."""

    def __init__(self, *targets: tuple[float, int]) -> None:
        self._targets = targets

    def target(self, view: FleetView, now: float) -> int:
        return [num for at, num in self._targets if at <= now][-1]


def replay(scaler: Scaler, *requests: TracedRequest, num_initial: int = 1) -> ScaledRun:
    fleet = ScaledFleet(
        RoutingConfig(block_size=16), MODEL, CONFIG.targets, lambda: scaler, Random(0),
        num_initial=num_initial,
    )  # fmt: skip
    return fleet.run(Trace("test", 16, requests))


def test_a_replica_takes_requests_when_it_has_started():
    run = replay(Fixed((0, 2)), *(TracedRequest(i * 0.01, 2000, 1, ()) for i in range(8)))
    assert run.sizes[0] == (0.0, 1, 2)
    assert run.sizes[1][0] == pytest.approx(5.0)
    assert run.sizes[1][1:] == (2, 2)


def test_what_a_replica_has_begun_it_ends_though_it_goes():
    run = replay(Fixed((0, 2), (1, 1)), *BURST[:20], num_initial=2)
    assert all(each.e2e_s > 0 for each in run.served)
    assert run.replica_s < 2 * max(each.request.arrival_s + each.e2e_s for each in run.served)


def test_from_no_replica_requests_wait_for_one():
    config = CONFIG.model_copy(update={"min_replicas": 0})
    run = replay(PlannedReplicas(config), TracedRequest(3.0, 500, 1, ()), num_initial=0)
    assert 5.0 < run.served[0].ttft_s < 6.5


def test_what_is_rejected_has_ended():
    classes = {"default": {"ttft": [{"ttft_s": 1.2}]}}
    routing = RoutingConfig.model_validate({"block_size": 16, "slo_classes": classes})
    fleet = ScaledFleet(routing, MODEL, CONFIG.targets, lambda: Fixed((0, 1)), Random(0))
    run = fleet.run(Trace("test", 16, tuple(TracedRequest(0.0, 1000, 1, ()) for _ in range(9))))
    assert [each.is_rejected for each in run.served].count(True) >= 5
    assert all(each.is_rejected or each.e2e_s for each in run.served)


def test_the_planner_brings_replicas_for_a_burst_and_says_why():
    planned = PlannedReplicas(CONFIG)
    run = replay(planned, *BURST)
    alone = replay(Fixed((0, 1)), *BURST)
    first = planned.changes[0][1]
    assert first.num_replicas > first.num_before
    assert first.numbers["offered"] > 0.4
    slowest = [max(each.ttft_s for each in which.served) for which in (run, alone)]
    assert slowest[0] < slowest[1] / 3


def view(num_ongoing: float, num_running: int = 2) -> FleetView:
    return FleetView(num_running, num_running, 0, {}, num_ongoing)


def test_serve_s_rule_waits_for_its_delays_and_takes_the_latest_need():
    settings = OngoingRequests(2.0, 1.0, 2.0, 0.4, max_replicas=9)
    scaler = OngoingRequestsScaler(settings)
    assert [scaler.target(view(12), at) for at in (0.0, 0.5, 1.0)] == [2, 2, 6]
    assert [scaler.target(view(2), at) for at in (1.5, 2.5, 3.5)] == [2, 2, 1]


def test_serve_s_rule_averages_over_its_look_back():
    scaler = OngoingRequestsScaler(OngoingRequests(1.0, 0.0, 0.0, 1.0, max_replicas=9))
    assert [scaler.target(view(n), at) for at, n in ((0.0, 2), (0.5, 6), (1.0, 6))] == [2, 4, 6]


def test_days_have_the_rates_that_they_are_to_have():
    shape = Diurnal(num_days=1, day_s=4000, unevenness=0.2)
    arrivals = [each.arrival_s for each in diurnal(shape, Random(1)).requests]
    night = sum(at < 400 for at in arrivals) / 400
    noon = sum(1800 <= at < 2200 for at in arrivals) / 400
    assert night < 2
    assert noon == pytest.approx(12, rel=0.15)
    assert arrivals == sorted(arrivals)
