"""What a replica tells the Master, and what it does without one."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from deployments.master.link import MasterLink, _named
from deployments.master.wire import decode_report, decode_standing, encode
from rtp_serve.clock import WallClock
from rtp_serve.routing.block_stream import SnapshotPage
from rtp_serve.routing.report import WorkerReport
from rtp_serve.routing.types import Prefilled, Role, WorkerId, WorkerStatus
from tests.deployments.master.played_master import BLOCKS, PlayedMaster, make_report


class PlayedReporter:
    """Of a worker whose blocks are always the same."""

    def __init__(self) -> None:
        self.num_taken = 0
        self._wants_all = False
        self._has_begun = False

    @property
    def has_news(self) -> bool:
        return self._wants_all or not self._has_begun

    def send_all(self) -> None:
        self._wants_all = True

    def take(self) -> WorkerReport:
        self.num_taken += 1
        status = make_report("a").status
        if self._wants_all:
            self._wants_all = False
            return WorkerReport((), (SnapshotPage("a", 1, 1, 0, 1, BLOCKS),), status)
        if self._has_begun:
            return WorkerReport((), (), status)
        self._has_begun = True
        return make_report("a", BLOCKS)


class Stage:
    """A link over a Master that comes and goes."""

    def __init__(self) -> None:
        self.master = PlayedMaster()
        self.reporter = PlayedReporter()
        self.role = Role.MIXED
        self.link = MasterLink(
            WorkerId("a"),
            self.reporter,
            self.master,
            WallClock(),
            lambda: self.role,
            lambda chain: None,
        )

    @property
    def num_known_blocks(self) -> int:
        workers = decode_standing(self.master.service.figures()).workers
        return sum(each.num_cached_blocks for each in workers)

    async def until(self, is_so: Callable[[], bool]) -> None:
        while not is_so():
            await asyncio.sleep(0.001)


def play(scenario: Callable[[Stage], Coroutine[Any, Any, None]]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(20):
            stage = Stage()
            stage.link.start()
            await scenario(stage)
            await stage.link.close()

    asyncio.run(bounded())


def test_a_restarted_master_gets_all_blocks_again():
    async def scenario(stage: Stage) -> None:
        await stage.until(lambda: stage.num_known_blocks == len(BLOCKS))
        stage.master.begin("second")
        assert stage.num_known_blocks == 0
        await stage.until(lambda: stage.num_known_blocks == len(BLOCKS))

    play(scenario)


def test_a_report_that_was_lost_is_made_good(caplog: pytest.LogCaptureFixture):
    async def scenario(stage: Stage) -> None:
        stage.master.is_there = False
        await stage.until(lambda: "routed without it" in caplog.text)
        stage.master.is_there = True
        await stage.until(lambda: stage.num_known_blocks == len(BLOCKS))

    play(scenario)
    assert caplog.text.count("routed without it") == 1


def test_without_news_there_is_a_heartbeat_and_little_else():
    async def scenario(stage: Stage) -> None:
        await stage.until(lambda: stage.reporter.num_taken >= 3)
        assert stage.master.num_asked["report"] <= 3

    clock, taken = WallClock(), 2
    started_s = clock.monotonic()
    play(scenario)
    assert clock.monotonic() - started_s > (taken - 1) * 0.9


def test_who_leaves_says_so():
    masters: list[PlayedMaster] = []

    async def scenario(stage: Stage) -> None:
        masters.append(stage.master)
        await stage.until(lambda: stage.num_known_blocks > 0)

    play(scenario)
    assert not decode_standing(masters[0].service.figures()).workers


def test_a_prefill_replica_s_names_are_those_that_the_master_booked():
    def status(suffix: str, role: Role) -> WorkerReport:
        return WorkerReport(
            (),
            (),
            WorkerStatus(
                WorkerId("p"),
                1,
                role,
                waiting_ids=(f"w{suffix}",),
                running_ids=(f"r#2{suffix}",),
                prefilled=(Prefilled(f"f{suffix}", None),),
                finished_ids=(f"x{suffix}",),
            ),
        )

    for role in (Role.PREFILL, Role.DECODE):  # what it had before it switched is booked still
        renamed = _named(status("@decode-7#1", Role.PREFILL), role)
        assert renamed == status("", role)
    assert _named(status("@odd", Role.MIXED), Role.MIXED) == status("@odd", Role.MIXED)
    assert decode_report(encode(renamed)) == renamed
