"""Engines of several ranks, each a process of its own."""

import os
import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest

from rtp_serve.build import build_core
from rtp_serve.clock import WallClock
from rtp_serve.config.engine import EngineConfig, ModelSource
from rtp_serve.engine.core import EngineCore
from rtp_serve.engine.request import Request
from rtp_serve.engine.sampling_params import SamplingParams
from rtp_serve.errors import CheckpointError, ConfigError, RankError, RankLost, ReloadRefused
from rtp_serve.kv_store.tier_counts import Tier
from rtp_serve.routing.report import WorkerIdentity
from rtp_serve.routing.types import Role, WorkerId
from rtp_serve.worker.ranks.local import LocalProcess, LocalStarter
from rtp_serve.worker.ranks.plan import RankPlan
from tests.checkpoints import tiny_config, write_checkpoint
from tests.integration.engines import run
from tests.worker.engines import make_prompt

CLOCK = WallClock()
GREEDY = SamplingParams(temperature=0.0, max_tokens=24, ignore_eos=True)


class Starter(LocalStarter):
    """Keeps the processes in sight; says of ranks that they are on nodes of their own, if asked."""

    def __init__(self, world_size: int, *, is_one_node: bool = True) -> None:
        super().__init__(world_size)
        self.processes: list[LocalProcess] = []
        self._nodes = ["here" if is_one_node else str(rank) for rank in range(world_size)]

    @property
    def nodes(self) -> Sequence[str]:
        return self._nodes

    def start(self, plan: RankPlan) -> LocalProcess:
        self.processes.append(super().start(plan))
        return self.processes[-1]


def settings(model: Path, tp: int = 1, **config: Any) -> EngineConfig:
    return EngineConfig.model_validate(
        {
            "model": str(model),
            "dtype": "float32",
            "num_threads": 1,
            "cache": {"num_blocks": 64},
            "parallel": {"tp": tp},
            "weight_store": {"enable": False},
            **config,
        }
    )


@contextmanager
def engine(config: EngineConfig, starter: Starter) -> Iterator[EngineCore]:
    core = build_core(config, starter=starter)
    try:
        yield core
    finally:
        core.shutdown()
        assert not any(process.is_alive for process in starter.processes)


def requests() -> list[Request]:
    return [Request(f"r{i}", tuple(make_prompt(10 + 23 * i, i)), GREEDY, seed=i) for i in range(3)]


def run_on(core: EngineCore) -> None:
    while core.has_work:
        core.step()


def expected(model: Path) -> dict[str, Any]:
    return run(build_core(settings(model)), requests())


def content(model: Path) -> str:
    """What one rank has in its weights."""
    return build_core(settings(model)).model.content


@pytest.mark.parametrize(("tp", "is_one_node"), [(2, True), (3, True), (2, False)])
def test_processes_give_the_tokens_of_one(tp: int, is_one_node: bool, tmp_path: Path):
    model = write_checkpoint(tmp_path, tiny_config(num_attention_heads=6, num_key_value_heads=3))
    with engine(settings(model, tp), Starter(tp, is_one_node=is_one_node)) as core:
        assert run(core, requests()) == expected(model)
        assert core.model.content == content(model)


def test_ranks_measure_themselves_and_give_the_same_tokens(tmp_path: Path):
    model = write_checkpoint(tmp_path)
    with engine(settings(model, 2), Starter(2)) as core:
        reporter = core.report(WorkerIdentity(WorkerId("w0"), 1, Role.MIXED, ""))
        assert reporter.take().status.self_benchmark
        assert run(core, requests()) == expected(model)


@pytest.mark.parametrize("is_one_node", [True, False])
def test_a_rank_that_is_killed_within_a_step_fails_it_for_all(is_one_node: bool, tmp_path: Path):
    model = write_checkpoint(tmp_path)
    starter = Starter(2, is_one_node=is_one_node)
    with engine(settings(model, 2), starter) as core:
        core.add_request(requests()[0])
        core.step()
        os.kill(starter.processes[0].pid, signal.SIGKILL)
        started_s = CLOCK.monotonic()
        with pytest.raises(RankError):
            run_on(core)
        assert CLOCK.monotonic() - started_s < 2.0
        with pytest.raises(RankLost, match="rank 1"):
            core.check()


def test_a_rank_that_is_killed_between_steps_is_missed(tmp_path: Path):
    starter = Starter(2)
    with engine(settings(write_checkpoint(tmp_path), 2), starter) as core:
        core.check()
        starter.processes[0].kill()
        with pytest.raises(RankLost, match="rank 1"):
            core.check()


def test_followers_end_when_their_leader_does(tmp_path: Path):
    starter = Starter(2)
    core = build_core(settings(write_checkpoint(tmp_path), 2), starter=starter)
    core.shutdown()
    assert starter.processes[0].wait() == 0


def test_what_one_rank_cannot_load_no_rank_runs(tmp_path: Path):
    model = write_checkpoint(tmp_path)
    (model / "model.safetensors").write_bytes(b"nothing")
    starter = Starter(2)
    with pytest.raises(CheckpointError):
        build_core(settings(model, 2), starter=starter)
    assert not starter.processes[0].is_alive


def test_other_weights_take_the_place_of_those_that_run_on_every_rank(tmp_path: Path):
    first = write_checkpoint(tmp_path / "first")
    second = write_checkpoint(tmp_path / "second", seed=1)
    other = write_checkpoint(tmp_path / "other", tiny_config(vocab_size=128))
    with engine(settings(first, 2), Starter(2)) as core:
        before = core.version
        with pytest.raises(ReloadRefused):
            core.load(ModelSource(model=str(other)))
        assert core.load() is before
        version = core.load(ModelSource(model=str(second)))
        assert version.number == before.number + 1
        assert version.namespace != before.namespace
        assert version.model.content == content(second) != before.model.content
        core.switch(version)
        assert run(core, requests()) == expected(second)


def test_a_version_that_one_rank_cannot_load_is_taken_back_by_the_others(tmp_path: Path):
    class Longer(Starter):
        """Followers promise longer sequences than the leader."""

        def start(self, plan: RankPlan) -> LocalProcess:
            config = plan.config | {"max_model_len": 512}
            return super().start(msgspec.structs.replace(plan, config=config))

    first = write_checkpoint(tmp_path / "first")
    shorter = write_checkpoint(
        tmp_path / "shorter", tiny_config(max_position_embeddings=256), seed=1
    )
    second = write_checkpoint(tmp_path / "second", seed=2)
    with engine(settings(first, 2, max_model_len=128), Longer(2)) as core:
        before = core.version
        with pytest.raises(ConfigError, match="rank 1: max_model_len"):
            core.load(ModelSource(model=str(shorter)))
        assert run(core, requests()) == expected(first)
        core.switch(core.load(ModelSource(model=str(second))))
        assert core.version.number == before.number + 1
        assert run(core, requests()) == expected(second)


@pytest.mark.parametrize("tier", [Tier.HOST, Tier.DISK])
def test_blocks_of_all_ranks_go_to_the_tiers_and_come_back(tier: Tier, tmp_path: Path):
    model = write_checkpoint(
        tmp_path / "model", tiny_config(num_attention_heads=6, num_key_value_heads=3)
    )
    kv_store = {
        "host": {"enable": True, "memory": "64MiB"},
        "disk": {"enable": True, "directory": str(tmp_path / "kv"), "max_size": "64MiB"},
        "application": f"test-ranks-{os.getpid()}",
    }
    wanted = [Request(f"r{i}", tuple(make_prompt(200, i)), GREEDY, seed=i) for i in range(6)]
    answers = run(build_core(settings(model)), wanted)
    config = settings(model, 2, cache={"num_blocks": 20}, kv_store=kv_store)
    with engine(config, Starter(2)) as core:
        for request in wanted:
            assert run(core, [request])[request.request_id] == answers[request.request_id]
        if tier is Tier.HOST:
            assert_restored(core, wanted, answers, tier)
    if tier is Tier.DISK:  # whose blocks outlive the engine
        with engine(config, Starter(2)) as core:
            assert_restored(core, wanted, answers, tier)


def assert_restored(
    core: EngineCore, wanted: list[Request], answers: dict[str, Any], tier: Tier
) -> None:
    for request in wanted:
        again = replace(request, request_id=f"again-{request.request_id}")
        found = run(core, [again])[again.request_id]
        assert found.token_ids == answers[request.request_id].token_ids
        assert found.num_cached_tokens >= 192
    assert core.tiers is not None
    assert core.tiers.counts[tier].restored > 0
