from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rtp_serve.clock import VirtualClock
from rtp_serve.engine.executor import CompletedStep
from rtp_serve.engine.output import SchedulerOutput
from rtp_serve.routing.predictor import PrefillPredictor
from rtp_serve.routing.report import WorkerIdentity
from rtp_serve.routing.types import PrefillPoint, Role, WorkerId
from tests.factories import MemoryWorker, make_core, make_prompt, make_request, run_to_end
from tests.unit.engine.test_tiering import Node

IDENTITY = WorkerIdentity(WorkerId("w0"), 1, Role.MIXED, "")


class TimedWorker(MemoryWorker):
    """Takes a time a token, and a quarter of that for each token that is attended to 100 times."""

    def __init__(self, num_blocks: int, clock: VirtualClock, token_s: float) -> None:
        super().__init__(num_blocks)
        self._clock, self._token_s = clock, token_s
        self.num_computed = 0

    def submit(self, scheduled: SchedulerOutput) -> CompletedStep:
        for new, context in zip(
            scheduled.num_scheduled_tokens, scheduled.num_computed_tokens, strict=True
        ):
            attended = new * (context + new / 2)
            self._clock.advance(self._token_s * (new + attended / 400))
            self.num_computed += new
        return super().submit(scheduled)


def make(token_s: float = 0.0005, num_blocks: int = 64, **options: Any):
    clock = VirtualClock()
    worker = TimedWorker(num_blocks, clock, token_s)
    return make_core(num_blocks=num_blocks, worker=worker, clock=clock, **options), worker, clock


def measured(core: Any) -> tuple[PrefillPoint, ...]:
    return core.report(IDENTITY).take().status.self_benchmark


def test_a_benchmark_tells_new_tokens_from_context():
    core, _, clock = make()
    points = measured(core)
    assert [(each.num_new_tokens, each.num_context_tokens) for each in points] == [
        (64, 0),
        (256, 0),
        (64, 256),
    ]
    assert clock.monotonic() <= 1.0
    predictor = PrefillPredictor(1)
    predictor.start(0, points)
    one = np.array([0]), np.array([128]), np.array([128])
    expected = 0.0005 * (128 + 128 * (128 + 64) / 400)
    assert predictor.predict(*one)[0] == pytest.approx(expected, rel=0.05)


@pytest.mark.parametrize(("token_s", "num_points"), [(0.1, 0), (0.01, 1), (0.002, 2)])
def test_a_slow_model_measures_less_and_within_the_time(token_s: float, num_points: int):
    core, _, clock = make(token_s)
    assert len(measured(core)) == num_points
    if num_points:
        assert clock.monotonic() <= 1.5  # a prompt may take longer than the shorter one did


def test_a_prompt_that_does_not_fit_is_not_measured():
    assert len(measured(make(num_blocks=10)[0])) == 1
    assert len(measured(make(max_model_len=200)[0])) == 1


def test_nothing_of_it_is_left(tmp_path: Path):
    node = Node(disk=tmp_path)
    core, worker, _ = make(access=node.access)
    reporter = core.report(IDENTITY)
    assert worker.num_computed == 16 + 64 + 256 + 64
    report = reporter.take()
    assert (report.deltas, report.pages) == ((), ())
    assert core.stats.num_cached_blocks == 0
    assert core.stats.num_free_blocks == core.stats.num_blocks
    assert core._cache.pool.allocate(3) == [1, 2, 3]
    core._cache.pool.release([1, 2, 3])
    assert worker._seqs == {}
    assert node.store.stats().host.counts.stored == 0
    core.check_invariants()
    core.shutdown()


def test_outputs_are_the_same_afterwards():
    requests = [make_request("a", make_prompt(80)), make_request("b", make_prompt(300, 1))]
    core, _, _ = make()
    core.report(IDENTITY)
    assert run_to_end(core, requests) == run_to_end(make()[0], requests)


def test_beside_running_sequences_nothing_is_measured():
    core, _, _ = make()
    core.add_request(make_request("a"))
    core.step()
    assert measured(core) == ()
