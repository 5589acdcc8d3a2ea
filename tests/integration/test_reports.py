"""A Master that hears a real engine."""

import asyncio
from pathlib import Path
from random import Random

import pytest

from rtp_serve.build import build_engine
from rtp_serve.config.engine import EngineConfig
from rtp_serve.config.routing import RoutingConfig
from rtp_serve.engine.async_engine import AsyncEngine
from rtp_serve.routing.ledger import RequestState
from rtp_serve.routing.master import Master
from rtp_serve.routing.report import Reporter, WorkerIdentity
from rtp_serve.routing.types import Outcome, RequestFeatures, Role, WorkerId
from tests.checkpoints import tiny_config, write_checkpoint
from tests.factories import make_prompt, make_request

IDENTITY = WorkerIdentity(WorkerId("w0"), 1, Role.MIXED, "")


def build(directory: Path, **options: object) -> AsyncEngine:
    model = write_checkpoint(directory, tiny_config("Qwen3ForCausalLM"), seed=1)
    values = {"model": str(model), "weight_store": {"enable": False}, **options}
    return build_engine(EngineConfig.model_validate(values))


def tell(master: Master, reporter: Reporter, now: float) -> None:
    report = reporter.take()
    for delta in report.deltas:
        master.on_delta(delta)
    for page in report.pages:
        master.on_page(page)
    master.on_status(report.status, now)


@pytest.mark.parametrize("num_blocks", [512, 12], ids=["roomy", "preempting"])
def test_a_master_follows_an_engine(tmp_path: Path, num_blocks: int):
    engine = build(tmp_path, cache={"num_blocks": num_blocks})
    vocab_size = engine.model.vocab_size
    prompts = [[token % vocab_size for token in make_prompt(40, i % 4)] for i in range(8)]
    requests = [
        make_request(f"r{i}", prompt, max_tokens=30, ignore_eos=True)
        for i, prompt in enumerate(prompts)
    ]
    master = Master(RoutingConfig(max_workers=2), Random(0))
    reporter = engine.reporter(IDENTITY)
    tell(master, reporter, 0.0)
    for request in requests:
        hashes = engine.model.block_hashes(request.prompt_token_ids, "")
        features = RequestFeatures(request.request_id, 40, hashes, 0.0)
        assert master.schedule(features, 0.0).outcome is Outcome.ROUTED

    async def run() -> None:
        async def consume(index: int) -> None:
            async for _ in engine.generate(requests[index]):
                tell(master, reporter, 1.0)

        await asyncio.gather(*map(consume, range(len(requests))))

    asyncio.run(run())
    tell(master, reporter, 2.0)
    engine.shutdown()
    tell(master, reporter, 2.0)
    assert master._ledger.ended == {RequestState.FINISHED: len(requests)}
    found = frozenset(engine._core._cache.pool.hashes())
    assert master._index.blocks("w0") == found
    for request in requests:
        hashes = engine.model.block_hashes(request.prompt_token_ids, "")
        num_cached = engine.num_cached_blocks(request)
        assert master.cached_blocks(hashes) == ({"w0": num_cached} if num_cached else {})
        assert num_cached == 2 or num_blocks == 12
    master.check_invariants()


def test_a_replica_measures_itself(tmp_path: Path):
    engine = build(tmp_path, cache={"num_blocks": 64})
    points = engine.reporter(IDENTITY).take().status.self_benchmark
    assert points
    assert all(point.duration_s > 0 for point in points)
    assert engine.stats.num_cached_blocks == 0
    engine.shutdown()
