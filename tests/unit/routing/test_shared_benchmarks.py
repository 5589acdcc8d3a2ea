"""Equal workers look equal, whatever their machines did while they measured."""

import numpy as np

from rtp_serve.routing.predictor import PrefillPredictor
from rtp_serve.routing.shared_benchmarks import SharedBenchmarks
from rtp_serve.routing.types import PrefillPoint, Role


def points(factor: float) -> list[PrefillPoint]:
    return [PrefillPoint(new, 0, factor * new / 1000) for new in (64, 256, 1024)]


def predicted(predictor: PrefillPredictor) -> list[float]:
    slots = np.arange(2)
    return predictor.predict(slots, np.full(2, 500), np.zeros(2, np.int64)).tolist()


def test_a_disturbed_benchmark_counts_for_nothing_whichever_comes_first():
    for factors in ((1.0, 40.0), (40.0, 1.0)):
        predictor = PrefillPredictor(2)
        benchmarks = SharedBenchmarks(predictor)
        for slot, factor in enumerate(factors):
            benchmarks.start(slot, Role.MIXED, points(factor))
        first, second = predicted(predictor)
        assert first == second
        assert abs(first - 0.5) < 0.05


def test_roles_are_not_compared():
    predictor = PrefillPredictor(2)
    benchmarks = SharedBenchmarks(predictor)
    benchmarks.start(0, Role.PREFILL, points(1.0))
    benchmarks.start(1, Role.DECODE, points(10.0))
    first, second = predicted(predictor)
    assert second > 5 * first


def test_what_a_worker_has_done_is_not_forgotten_for_a_newcomer_s_benchmark():
    predictor = PrefillPredictor(2)
    benchmarks = SharedBenchmarks(predictor)
    benchmarks.start(0, Role.MIXED, points(4.0))
    benchmarks.learned(0)
    before, _ = predicted(predictor)
    benchmarks.start(1, Role.MIXED, points(1.0))
    first, second = predicted(predictor)
    assert first == before > 2 * second
