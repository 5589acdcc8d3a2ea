"""Weights exchanged under running requests: who runs on which version, and when one is dropped."""

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from rtp_serve.config.engine import ModelSource
from rtp_serve.engine.async_engine import AsyncEngine
from rtp_serve.engine.request import Request, SequenceDelta
from rtp_serve.engine.version import ModelVersion
from rtp_serve.errors import CheckpointError, EngineDead, ReloadFailed
from tests.factories import (
    MemoryWorker,
    collect,
    make_core,
    make_prompt,
    make_request,
    predicted_tokens,
    run_to_end,
)


def test_running_and_waiting_requests_finish_on_the_version_they_came_to():
    core = make_core(max_num_seqs=2)
    early = [make_request(f"early{i}", make_prompt(20, i), max_tokens=30) for i in range(4)]
    outputs: dict[str, list[list[int]]] = {request.request_id: [[]] for request in early}
    for request in early:
        core.add_request(request)
    for _ in range(3):
        collect(outputs, core.step())
    core.switch(core.load())
    late = [make_request(f"late{i}", make_prompt(20, i), max_tokens=30) for i in range(4)]
    outputs |= {request.request_id: [[]] for request in late}
    for request in late:
        core.add_request(request)
    while core.has_work:
        collect(outputs, core.step())
        core.check_invariants()
    assert [outputs[each.request_id][0] for each in early] == [*map(predicted_tokens, early)]
    expected = [predicted_tokens(each, version=1) for each in late]
    assert [outputs[each.request_id][0] for each in late] == expected


def test_versions_do_not_share_blocks():
    core = make_core()
    request = make_request("a", make_prompt(40), max_tokens=20, ignore_eos=True)
    run_to_end(core, [request])
    core.switch(core.load())
    again = make_request("b", make_prompt(40), max_tokens=20, ignore_eos=True)
    core.add_request(again)
    tokens: list[int] = []
    num_cached = 0
    while core.has_work:
        for delta in core.step():
            tokens += delta.token_ids
            num_cached = max(num_cached, delta.num_cached_tokens)
    assert num_cached == 0
    assert tokens == predicted_tokens(again, version=1)


def test_weights_that_come_back_find_their_blocks():
    core = make_core()
    first = core.version
    run_to_end(core, [make_request("a", make_prompt(40))])
    core.switch(core.load())
    back = ModelVersion(2, first.model)
    core.switch(back)
    core.add_request(make_request("b", make_prompt(40)))
    (delta,) = core.step()
    assert delta.num_cached_tokens == 39


def test_the_first_delta_names_the_version():
    core = make_core()
    core.add_request(make_request("old", max_tokens=2, ignore_eos=True))
    core.step()
    core.switch(core.load())
    core.add_request(make_request("new", max_tokens=2, ignore_eos=True))
    deltas = [*core.step(), *core.step()]
    named = {(delta.request_id, delta.fingerprint) for delta in deltas}
    assert named == {("old", ""), ("new", "fp_1"), ("new", "")}


def test_a_version_is_dropped_when_its_last_sequence_ends():
    worker = MemoryWorker(64)
    core = make_core(worker=worker)
    core.switch(core.load())
    assert worker.dropped == [0]
    core.add_request(make_request("a", max_tokens=3, ignore_eos=True))
    core.add_request(make_request("b", n=2, max_tokens=400, ignore_eos=True))
    core.step()
    core.switch(core.load())
    core.add_request(make_request("c", max_tokens=400, ignore_eos=True))
    for _ in range(5):
        core.step()
    assert core.num_old_versions == 1
    core.abort("b")
    assert core.num_old_versions == 0
    assert worker.dropped == [0, 1]
    core.step()
    core.check_invariants()


def test_a_preempted_sequence_is_computed_again_by_its_version():
    core = make_core(num_blocks=12, max_num_seqs=4)
    early = [make_request(f"e{i}", make_prompt(30, i), max_tokens=60, seed=i) for i in range(2)]
    outputs: dict[str, list[list[int]]] = {request.request_id: [[]] for request in early}
    for request in early:
        core.add_request(request)
    collect(outputs, core.step())
    core.switch(core.load())
    late = [make_request(f"l{i}", make_prompt(30, i), max_tokens=60, seed=i) for i in range(2)]
    for request in late:
        core.add_request(request)
        outputs[request.request_id] = [[]]
    while core.has_work:
        collect(outputs, core.step())
        core.check_invariants()
    assert core.counters.num_preemptions > 0
    assert [outputs[each.request_id][0] for each in early] == [*map(predicted_tokens, early)]
    expected = [predicted_tokens(each, version=1) for each in late]
    assert [outputs[each.request_id][0] for each in late] == expected


async def tokens_of(engine: AsyncEngine, request: Request) -> list[int]:
    return [token async for delta in engine.generate(request) for token in delta.token_ids]


class SlowToLoad(MemoryWorker):
    """Loads when it is let."""

    def __init__(self) -> None:
        super().__init__(num_blocks=256)
        self.is_loading, self.may_load = threading.Event(), threading.Event()

    def load(self, source: ModelSource | None = None) -> ModelVersion:
        self.is_loading.set()
        assert self.may_load.wait(10), "nobody let it load"
        return super().load(source)


def test_a_reload_under_fifty_streams_costs_no_token():
    worker = SlowToLoad()

    async def scenario() -> None:
        engine = AsyncEngine(make_core(worker=worker, num_blocks=256), max_queued=200)
        early = [make_request(f"e{i}", make_prompt(10, i), max_tokens=40) for i in range(50)]
        streams = [asyncio.create_task(tokens_of(engine, request)) for request in early]
        reload = asyncio.create_task(engine.reload())
        await asyncio.to_thread(worker.is_loading.wait, 10)
        meanwhile = make_request("m", make_prompt(10))
        assert await tokens_of(engine, meanwhile) == predicted_tokens(meanwhile)
        worker.may_load.set()
        (reloaded,) = await reload
        assert (reloaded.fingerprint, reloaded.is_changed) == ("fp_1", True)
        late = [make_request(f"l{i}", make_prompt(10, i), max_tokens=40) for i in range(50)]
        outputs = await asyncio.gather(*(tokens_of(engine, request) for request in late))
        assert outputs == [predicted_tokens(request, version=1) for request in late]
        assert await asyncio.gather(*streams) == [*map(predicted_tokens, early)]
        assert worker.dropped == [0]
        engine.shutdown()

    asyncio.run(scenario())


def test_equal_weights_are_no_new_version():
    engine = AsyncEngine(make_core(), max_queued=10)
    assert engine.load(ModelSource(model="other")).is_changed
    reloaded = engine.load(ModelSource(model="same"))
    assert reloaded.fingerprint == "fp_1"
    engine.shutdown()


def test_what_cannot_be_loaded_changes_nothing():
    worker = MemoryWorker(64)
    engine = AsyncEngine(make_core(worker=worker), max_queued=10)
    with pytest.raises(CheckpointError, match="no such checkpoint"):
        engine.load(ModelSource(model="bad"))
    request = make_request()
    assert asyncio.run(tokens_of(engine, request)) == predicted_tokens(request)
    assert worker.dropped == []
    engine.shutdown()


def test_a_client_hears_why_a_reload_failed():
    worker = MemoryWorker(64)
    worker.load = lambda source=None: (_ for _ in ()).throw(CheckpointError("no weights"))
    engine = AsyncEngine(make_core(worker=worker), max_queued=10)
    with pytest.raises(ReloadFailed, match="no weights"):
        asyncio.run(engine.reload())
    engine.shutdown()


class Ignoring:
    """A sink for whoever does not listen."""

    def deliver(self, deltas: list[SequenceDelta]) -> None:
        pass


@pytest.mark.parametrize("end", ["abort", "shutdown"])
def test_a_third_version_waits_until_the_first_has_ended(end: str):
    """Memory is bounded by two."""
    worker = MemoryWorker(300)
    engine = AsyncEngine(make_core(worker=worker, num_blocks=300, max_model_len=4096), 10)
    engine.submit(make_request("long", max_tokens=4000, ignore_eos=True), Ignoring())
    engine.load()
    with ThreadPoolExecutor(1) as pool:
        third = pool.submit(engine.load)
        assert worker.dropped == []
        if end == "abort":
            engine.abort("long")
            assert third.result(10).fingerprint == "fp_2"
            assert worker.dropped == [0, 1]
        else:
            engine.shutdown()
            with pytest.raises(EngineDead, match="shutting down"):
                third.result(10)
    engine.shutdown()
