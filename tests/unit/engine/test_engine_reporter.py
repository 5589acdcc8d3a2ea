"""What an engine says of itself, and what a Master makes of it."""

import threading
from collections.abc import Iterable, Iterator
from random import Random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rtp_serve.clock import VirtualClock
from rtp_serve.config.routing import RoutingConfig
from rtp_serve.engine.async_engine import AsyncEngine
from rtp_serve.engine.executor import CompletedStep
from rtp_serve.engine.output import SchedulerOutput
from rtp_serve.engine.request import Request, SequenceDelta
from rtp_serve.errors import EngineDead
from rtp_serve.kv_cache.block import BlockHash
from rtp_serve.routing.block_stream import StreamOutcome
from rtp_serve.routing.ledger import RequestState
from rtp_serve.routing.master import Master
from rtp_serve.routing.report import Reporter, WorkerIdentity, WorkerReport
from rtp_serve.routing.types import PrefillPoint, RequestFeatures, Role, WorkerId
from tests.factories import MemoryWorker, make_core, make_prompt, make_request, run_to_end

TOKEN_S = 0.001
IDENTITY = WorkerIdentity(WorkerId("w0"), 3, Role.MIXED, "node")


class TimedWorker(MemoryWorker):
    """Takes a millisecond a token; with a gate, as long as that is closed."""

    def __init__(self, num_blocks: int, clock: VirtualClock) -> None:
        super().__init__(num_blocks)
        self._clock = clock
        self.gate = threading.Event()
        self.gate.set()
        self.entered = threading.Event()

    def submit(self, scheduled: SchedulerOutput) -> CompletedStep:
        self.entered.set()
        assert self.gate.wait(10), "nobody opened the gate"
        self._clock.advance(scheduled.num_tokens * TOKEN_S)
        return super().submit(scheduled)


class Engine:
    """Stepped by hand, with a reporter and who would submit and hear of ends."""

    def __init__(self, num_blocks: int = 64, **scheduler: Any) -> None:
        self.clock = VirtualClock()
        worker = TimedWorker(num_blocks, self.clock)
        self.core = make_core(num_blocks=num_blocks, worker=worker, clock=self.clock, **scheduler)
        self.worker = worker
        self.reporter = self.core.report(IDENTITY)

    def add(self, *requests: Request) -> None:
        for request in requests:
            self.reporter.requests.submitted(request)
            self.core.add_request(request)

    def step(self) -> list[SequenceDelta]:
        deltas = self.core.step()
        for delta in deltas:
            if delta.finish_reason is not None:
                self.reporter.requests.sequence_ended(delta.request_id)
        self.reporter.settle()
        return deltas

    def abort(self, request_id: str) -> None:
        self.reporter.requests.ended(request_id)
        self.core.abort(request_id)
        self.reporter.settle()

    def run(self) -> None:
        while self.core.has_work:
            self.step()

    @property
    def found(self) -> frozenset[BlockHash]:
        return frozenset(self.core._cache.pool.hashes())

    def hashes(self, request: Request) -> tuple[BlockHash, ...]:
        return self.core.model.block_hashes(request.prompt_token_ids, request.cache_salt)

    def features(self, request: Request) -> RequestFeatures:
        num_tokens = len(request.prompt_token_ids)
        return RequestFeatures(request.request_id, num_tokens, self.hashes(request), 0.0)


def make_master() -> Master:
    return Master(RoutingConfig(max_workers=4), Random(0))


def tell(master: Master, report: WorkerReport, now: float) -> bool:
    """Whether the Master wants everything."""
    outcomes = [master.on_delta(delta) for delta in report.deltas]
    outcomes += [master.on_page(page) for page in report.pages]
    master.on_status(report.status, now)
    master.check_invariants()
    return StreamOutcome.NEEDS_SNAPSHOT in outcomes


def tell_all(master: Master, reporter: Reporter, now: float = 0.0) -> WorkerReport:
    """A report, and another one if the Master wants it; the first one's status."""
    report = reporter.take()
    if tell(master, report, now):
        reporter.send_all()
        assert not tell(master, reporter.take(), now)
    return report


def tells_blocks(report: WorkerReport) -> bool:
    return bool(report.deltas or report.pages)


def test_a_report_says_who_it_is_from_and_what_there_is():
    engine = Engine()
    status = engine.reporter.take().status
    assert (status.worker_id, status.epoch, status.role) == ("w0", 3, Role.MIXED)
    assert (status.node_id, status.num_blocks, status.num_free_blocks) == ("node", 63, 63)
    assert (status.num_decoding, status.itl_s) == (0, 0.0)
    engine.add(make_request("a", make_prompt(20)), make_request("b", make_prompt(20, 1)))
    assert engine.reporter.take().status.waiting_ids == ("a", "b")
    engine.step()
    engine.step()
    status = engine.reporter.take().status
    assert (status.waiting_ids, status.running_ids, status.num_decoding) == ((), ("a", "b"), 2)
    assert status.num_free_blocks == 63 - 4
    assert status.itl_s == pytest.approx(2 * TOKEN_S)
    engine.run()
    status = engine.reporter.take().status
    assert sorted(status.finished_ids) == ["a", "b"]
    assert (status.running_ids, status.num_decoding, status.itl_s) == ((), 0, 0.0)
    assert status.num_free_blocks == 63


def test_a_prompt_in_chunks_took_the_steps_that_computed_it():
    engine = Engine(max_num_batched_tokens=40)
    engine.add(make_request("a", make_prompt(100)))
    engine.run()
    (prefilled,) = engine.reporter.take().status.prefilled
    assert prefilled.request_id == "a"
    assert prefilled.point == PrefillPoint(100, 0, pytest.approx(100 * TOKEN_S))


def test_times_of_prompts_that_share_steps_add_up_to_those_of_the_steps():
    engine = Engine(max_num_batched_tokens=64)
    engine.add(make_request("decoding", make_prompt(8), max_tokens=30, ignore_eos=True))
    engine.step()
    engine.reporter.take()
    before_s = engine.clock.monotonic()
    engine.add(*(make_request(f"r{i}", make_prompt(50 + i, i)) for i in range(3)))
    prefilled = {}
    while len(prefilled) < 3:
        engine.step()
        for each in engine.reporter.take().status.prefilled:
            prefilled[each.request_id] = each.point
    points = [point for point in prefilled.values() if point is not None]
    assert [point.num_new_tokens for point in points] == [50, 51, 52]
    elapsed_s = engine.clock.monotonic() - before_s
    assert sum(point.duration_s for point in points) == pytest.approx(elapsed_s)


def test_a_cached_prefix_is_context():
    engine = Engine()
    prompt = make_prompt(50)
    engine.add(make_request("a", prompt[:40]))
    engine.run()
    engine.reporter.take()
    engine.add(make_request("b", prompt))
    engine.run()
    (prefilled,) = engine.reporter.take().status.prefilled
    assert prefilled.point is not None
    assert (prefilled.point.num_new_tokens, prefilled.point.num_context_tokens) == (10, 40)


def test_a_preempted_request_is_told_until_its_end_and_no_longer():
    engine = Engine(num_blocks=9)
    requests = [make_request(f"r{i}", make_prompt(40, i), max_tokens=40, ignore_eos=True)
                for i in range(2)]  # fmt: skip
    engine.add(*requests)
    told: list[str] = []
    while engine.core.has_work:
        engine.step()
        status = engine.reporter.take().status
        told += status.finished_ids
        assert sorted(status.waiting_ids + status.running_ids + tuple(told)) == ["r0", "r1"]
    assert engine.core.counters.num_preemptions > 0
    assert sorted(told) == ["r0", "r1"]


def test_an_aborted_request_has_ended_wherever_it_was():
    engine = Engine(max_num_batched_tokens=16, max_num_seqs=2)
    engine.add(*(make_request(f"r{i}", make_prompt(16 + 16 * i, i)) for i in range(3)))
    engine.step()  # r0 has a token, r1 is computed next, r2 waits
    engine.step()
    for i in range(3):
        engine.abort(f"r{i}")
        status = engine.reporter.take().status
        assert status.finished_ids == (f"r{i}",)
        assert f"r{i}" not in status.waiting_ids + status.running_ids
    engine.run()
    engine.add(make_request("next"))
    engine.step()
    assert len(engine.reporter._prefills) == 0


def test_a_sequence_that_cannot_be_computed_has_no_first_token():
    engine = Engine()
    engine.worker.broken_at_length = 20
    engine.add(make_request("a", make_prompt(20)))
    engine.run()
    status = engine.reporter.take().status
    assert (status.prefilled, status.finished_ids) == ((), ("a",))


def test_blocks_of_a_step_are_told_with_its_first_tokens():
    engine = Engine()
    engine.reporter.take()
    request = make_request("a", make_prompt(40))
    engine.add(request)
    engine.step()
    report = engine.reporter.take()
    assert [each.request_id for each in report.status.prefilled] == ["a"]
    (delta,) = report.deltas
    assert set(delta.added) == set(engine.hashes(request))


def test_a_master_that_hears_an_engine_knows_what_it_has_and_learns():
    engine, master = Engine(num_blocks=256), make_master()
    tell_all(master, engine.reporter)
    requests = [make_request(f"r{i}", make_prompt(60 + 30 * i, i % 3)) for i in range(12)]
    for request in requests:
        now = engine.clock.monotonic()
        decision = master.schedule(engine.features(request), now)
        assert decision.worker_id == "w0"
        engine.add(request)
        while engine.core.has_work:
            engine.step()
            tell_all(master, engine.reporter, engine.clock.monotonic())
    assert master._ledger.ended == {RequestState.FINISHED: len(requests)}
    assert master.num_in_flight == 0
    assert master._index.blocks("w0") == engine.found
    for request in requests:
        hashes = engine.hashes(request)
        assert master.cached_blocks(hashes) == {"w0": len(hashes)}
    unseen = RequestFeatures("unseen", 200, (), 0.0)
    decision = master.schedule(unseen, engine.clock.monotonic())
    assert decision.predicted_ttft_s == pytest.approx(200 * TOKEN_S, rel=0.1)


def test_a_master_that_starts_anew_hears_everything():
    engine = Engine()
    engine.add(make_request("a", make_prompt(64)))
    engine.run()
    engine.reporter.take()
    engine.add(make_request("b", make_prompt(64, 1)))
    engine.run()
    master = make_master()
    tell_all(master, engine.reporter)
    assert master._index.blocks("w0") == engine.found
    assert len(engine.found) >= 8


@settings(max_examples=25, deadline=None)
@given(st.data())
def test_an_index_that_hears_reports_has_what_the_engine_has(data: st.DataObject):
    """Few blocks, many prompts, preemptions, aborts, reloads and lost reports."""
    engine, master = Engine(num_blocks=14, max_num_batched_tokens=32), make_master()
    engine.reporter.settle()
    actions = ["add", "step", "step", "step", "report", "lose", "abort", "switch", "all"]
    num_added, has_gap = 0, False
    for action in data.draw(st.lists(st.sampled_from(actions), min_size=10, max_size=60)):
        match action:
            case "add":
                length, seed = data.draw(st.integers(1, 100)), data.draw(st.integers(0, 2))
                engine.add(make_request(f"r{num_added}", make_prompt(length, seed)))
                num_added += 1
            case "step":
                engine.step()
            case "report":
                has_gap &= not tells_blocks(tell_all(master, engine.reporter))
                assert has_gap or master._index.blocks("w0") == engine.found
            case "lose":  # whoever reports does not notice; the next delta shows it
                has_gap |= tells_blocks(engine.reporter.take())
            case "abort":
                engine.abort(f"r{data.draw(st.integers(0, num_added))}")
            case "switch":
                engine.core.switch(engine.core.load())
            case "all":
                engine.reporter.send_all()
        engine.core.check_invariants()
    engine.run()
    engine.reporter.send_all()
    tell_all(master, engine.reporter)
    assert master._index.blocks("w0") == engine.found
    assert not engine.reporter.has_news
    status = engine.reporter.take().status
    assert status.waiting_ids + status.running_ids == ()


# -- on a thread of its own --


class Finished:
    def __init__(self) -> None:
        self._is_over = threading.Event()

    def deliver(self, deltas: list[SequenceDelta]) -> None:
        if any(delta.finish_reason is not None for delta in deltas):
            self._is_over.set()

    def wait(self) -> None:
        assert self._is_over.wait(10), "the request has not ended"


@pytest.fixture
def worker() -> TimedWorker:
    return TimedWorker(64, VirtualClock())


@pytest.fixture
def engine(worker: TimedWorker) -> Iterator[AsyncEngine]:
    engine = AsyncEngine(make_core(worker=worker), max_queued=10)
    yield engine
    worker.gate.set()
    engine.shutdown()


def ids(report: WorkerReport) -> Iterable[tuple[str, ...]]:
    status = report.status
    return status.waiting_ids, status.running_ids, status.finished_ids


def test_a_request_is_told_from_submit_on_while_a_step_goes_on(
    engine: AsyncEngine, worker: TimedWorker
):
    reporter = engine.reporter(IDENTITY)
    worker.gate.clear()
    worker.entered.clear()
    finished = Finished()
    engine.submit(make_request("a", make_prompt(40)), finished)
    assert worker.entered.wait(10)
    engine.submit(make_request("b", make_prompt(40)), Finished())
    reporter.take()
    engine.submit(make_request("c", make_prompt(40)), Finished())
    assert reporter.has_news
    report = reporter.take()
    assert ids(report) == (("a", "b", "c"), (), ())
    assert report.deltas == ()  # what the step registers it has not computed
    engine.abort("b")
    assert ids(reporter.take()) == (("a", "c"), (), ("b",))
    worker.gate.set()
    finished.wait()
    engine.shutdown()
    told = reporter.take()
    assert {*told.status.finished_ids} == {"a", "c"}
    assert ids(reporter.take()) == ((), (), ())


def test_requests_of_an_engine_that_is_shut_down_have_ended(
    engine: AsyncEngine, worker: TimedWorker
):
    reporter = engine.reporter(IDENTITY)
    worker.gate.clear()
    engine.submit(make_request("a", max_tokens=400, ignore_eos=True), Finished())
    threading.Timer(0.0, worker.gate.set).start()
    engine.shutdown()
    assert ids(reporter.take()) == ((), (), ("a",))


def test_a_dead_engine_has_no_reporter():
    engine = AsyncEngine(make_core(), max_queued=1)
    engine.shutdown()
    with pytest.raises(EngineDead):
        engine.reporter(IDENTITY)


def test_an_ingress_hashes_a_prompt_as_the_engine_does(engine: AsyncEngine):
    reporter = engine.reporter(IDENTITY)
    finished = Finished()
    request = make_request("a", make_prompt(40), salt="alice/x", max_tokens=1)
    engine.submit(request, finished)
    finished.wait()
    (delta,) = reporter.take().deltas
    assert delta.added == engine.model.block_hashes(request.prompt_token_ids, "alice/x")


def test_an_engine_without_a_reporter_notes_nothing():
    core = make_core()
    run_to_end(core, [make_request("a", make_prompt(40))])
    assert core._cache.pool._note is None
