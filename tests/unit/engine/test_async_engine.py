import asyncio
import threading
from dataclasses import replace

import pytest

from rtp_serve.engine.async_engine import AsyncEngine
from rtp_serve.engine.output import SchedulerOutput
from rtp_serve.engine.request import FinishReason, Request, SequenceDelta
from rtp_serve.errors import EngineDead, InvalidRequest, Overloaded
from rtp_serve.observability.metrics import PrometheusSink
from tests.factories import MemoryWorker, make_core, make_prompt, make_request, predicted_tokens


async def tokens_of(engine: AsyncEngine, request: Request) -> list[int]:
    return [
        token for delta in [d async for d in engine.generate(request)] for token in delta.token_ids
    ]


class RecordingSink:
    def __init__(self) -> None:
        self.batches: list[list[SequenceDelta]] = []
        self.finished = threading.Event()
        self._num_open = 0

    def expect(self, num_sequences: int) -> "RecordingSink":
        self._num_open = num_sequences
        return self

    def deliver(self, deltas: list[SequenceDelta]) -> None:
        self.batches.append(deltas)
        self._num_open -= sum(delta.finish_reason is not None for delta in deltas)
        if self._num_open == 0:
            self.finished.set()


class GatedWorker(MemoryWorker):
    """Holds every step until it is let go."""

    def __init__(self, num_blocks: int = 64) -> None:
        super().__init__(num_blocks)
        self.entered, self.gate = threading.Event(), threading.Event()

    def submit(self, scheduled: SchedulerOutput):
        self.entered.set()
        assert self.gate.wait(10), "nobody opened the gate"
        return super().submit(scheduled)


def test_many_streams_at_once_get_their_own_tokens():
    async def scenario() -> None:
        engine = AsyncEngine(make_core(), max_queued=100)
        requests = [make_request(f"r{i}", make_prompt(10, i), max_tokens=20) for i in range(20)]
        outputs = await asyncio.gather(*(tokens_of(engine, request) for request in requests))
        assert outputs == [predicted_tokens(request) for request in requests]
        engine.shutdown()

    asyncio.run(scenario())


def test_closing_a_stream_aborts_its_request():
    async def scenario() -> None:
        engine = AsyncEngine(make_core(max_model_len=512), max_queued=10)
        stream = engine.generate(make_request(max_tokens=400, ignore_eos=True))
        await anext(stream)
        await stream.aclose()
        await tokens_of(engine, make_request("next", max_tokens=2))
        assert engine.stats.num_free_blocks == engine.stats.num_blocks
        engine.shutdown()

    asyncio.run(scenario())


def test_a_request_that_leaves_before_the_engine_takes_it_counts_as_aborted():
    worker, figures = GatedWorker(), PrometheusSink()
    engine = AsyncEngine(make_core(worker=worker, sink=figures), max_queued=10)
    first = RecordingSink().expect(1)
    engine.submit(make_request("first", max_tokens=1), first)
    assert worker.entered.wait(10)
    engine.submit(make_request("gone", max_tokens=1), RecordingSink())
    engine.abort("gone")
    worker.gate.set()
    assert first.finished.wait(10)
    engine.submit(make_request("last", max_tokens=1), last := RecordingSink().expect(1))
    assert last.finished.wait(10)
    engine.shutdown()
    assert 'finished_reason="abort"} 1.0' in figures.render()


def test_a_sink_hears_once_a_step_for_all_of_its_requests():
    worker = GatedWorker()
    engine = AsyncEngine(make_core(worker=worker), max_queued=10)
    sink = RecordingSink().expect(3)
    engine.submit(make_request("first", make_prompt(3), max_tokens=1), RecordingSink())
    assert worker.entered.wait(10)
    for i in range(3):
        engine.submit(make_request(f"r{i}", make_prompt(5, i), max_tokens=4, ignore_eos=True), sink)
    worker.gate.set()
    assert sink.finished.wait(10)
    assert [len(batch) for batch in sink.batches] == [3, 3, 3, 3]
    engine.shutdown()


def test_a_full_queue_is_refused_and_nothing_is_kept():
    worker = GatedWorker()
    engine = AsyncEngine(make_core(worker=worker), max_queued=2)
    first, sink = RecordingSink().expect(1), RecordingSink().expect(2)
    engine.submit(make_request("first", max_tokens=1), first)
    assert worker.entered.wait(10)
    for i in range(2):
        engine.submit(make_request(f"r{i}", max_tokens=1), sink)
    with pytest.raises(Overloaded):
        engine.submit(make_request("r2", max_tokens=1), sink)
    worker.gate.set()
    assert sink.finished.wait(10)
    assert {d.request_id for batch in sink.batches for d in batch} == {"r0", "r1"}
    engine.shutdown()


def test_a_full_queue_refuses_nothing_that_another_engine_has_admitted():
    worker = GatedWorker()
    engine = AsyncEngine(make_core(worker=worker), max_queued=1)
    sink = RecordingSink().expect(3)
    engine.submit(make_request("first", max_tokens=1), sink)
    assert worker.entered.wait(10)
    engine.submit(make_request("second", max_tokens=1), sink)
    third = make_request("third", max_tokens=2, ignore_eos=True)
    first_token = predicted_tokens(third)[:1]
    engine.submit(replace(third, emitted=(tuple(first_token),)), sink)
    worker.gate.set()
    assert sink.finished.wait(10)
    (last,) = [d for batch in sink.batches for d in batch if d.request_id == "third"]
    assert [*first_token, *last.token_ids] == predicted_tokens(third)
    engine.shutdown()


def test_more_sequences_than_may_ever_wait_are_refused_for_good():
    engine = AsyncEngine(make_core(), max_queued=2)
    with pytest.raises(InvalidRequest, match=r"n must be at most 2, .* got 3"):
        engine.submit(make_request(n=3), RecordingSink())
    engine.shutdown()


def test_an_id_used_again_hears_nothing_of_the_request_that_was_aborted():
    worker = GatedWorker()
    engine = AsyncEngine(make_core(worker=worker), max_queued=10)
    engine.submit(make_request("a", make_prompt(5, 1), max_tokens=1), RecordingSink())
    assert worker.entered.wait(10)
    engine.abort("a")
    sink = RecordingSink().expect(1)
    request = make_request("a", make_prompt(5, 2), max_tokens=3, ignore_eos=True)
    engine.submit(request, sink)
    worker.gate.set()
    assert sink.finished.wait(10)
    token_ids = [token for batch in sink.batches for delta in batch for token in delta.token_ids]
    assert token_ids == predicted_tokens(request)
    engine.shutdown()


def test_a_wrong_request_is_refused_where_it_is_made():
    engine = AsyncEngine(make_core(), max_queued=2)
    with pytest.raises(InvalidRequest):
        engine.submit(make_request(prompt=()), RecordingSink())
    engine.shutdown()


def test_a_failed_step_ends_every_stream_and_the_engine():
    engine = AsyncEngine(make_core(worker=MemoryWorker(64, fail_at_step=3)), max_queued=10)
    sink = RecordingSink().expect(3)
    engine.submit(make_request(max_tokens=50, n=3, ignore_eos=True), sink)
    assert sink.finished.wait(10)
    assert {d.finish_reason for d in sink.batches[-1]} == {FinishReason.ABORT}
    assert sorted(d.index for d in sink.batches[-1]) == [0, 1, 2]
    engine._thread.join(10)
    with pytest.raises(EngineDead):
        engine.submit(make_request("late"), sink)
    with pytest.raises(EngineDead):
        asyncio.run(engine.check_health())


def test_shutdown_ends_open_streams_and_releases_the_worker():
    worker = GatedWorker()
    engine = AsyncEngine(make_core(worker=worker), max_queued=10)
    sink = RecordingSink().expect(1)
    engine.submit(make_request(max_tokens=400, ignore_eos=True), sink)
    assert worker.entered.wait(10)
    worker.gate.set()
    engine.shutdown()
    assert sink.batches[-1][-1].error == "the engine is shutting down"
    assert worker.is_shut_down


def test_a_stream_whose_loop_is_gone_does_not_hurt_the_engine():
    engine = AsyncEngine(make_core(), max_queued=10)

    async def leave() -> None:
        stream = engine.generate(make_request("left", max_tokens=400, ignore_eos=True))
        await anext(stream)

    asyncio.run(leave())
    request = make_request("next", max_tokens=5)
    assert asyncio.run(tokens_of(engine, request)) == predicted_tokens(request)
    engine.shutdown()
