"""A real fleet whose Master, or one of its two ingresses, is killed amid a load.

Each repetition plays the same order of requests three times: undisturbed, with the Master killed
again and again, with an ingress killed once. Clients of a lost ingress send their requests again;
with a lost Master nobody does.
"""

import asyncio
import os
import signal
from collections.abc import Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from random import Random
from statistics import fmean
from time import perf_counter

import httpx

from benchmarks.plans import application
from benchmarks.processes import command_line
from benchmarks.report import Report, say
from benchmarks.routing_fleet import fleet_config, summary
from benchmarks.samples import percentile
from benchmarks.servers import Server, ServerPlan
from benchmarks.shared_prefixes import (
    Answer,
    Arrival,
    SharedPrefixes,
    num_cached_tokens,
    play,
    ttfts_s,
)
from deployments.master.service import WARM_UP_S
from rtp_serve.errors import RtpServeError

_ADMIN_TOKEN = "benchmark"  # of a server on the loopback interface
_MASTER, _INGRESS = "MasterActor", "Ingress"
"""In the command lines of their processes."""

_NUM_REPLICAS, _NUM_INGRESSES = 3, 2
_NUM_TRIES = 200
"""Of a client that has lost its ingress, twenty a second."""

_FIRST_KILL_S = 4.0
_UNHARMED_S = 1.0, 4.0
"""A Master lives for so long between two kills; ingresses take a snapshot every three seconds."""

_PATIENCE_S = 60.0
_SETTLE_S = 2.0
_POLL_S = 0.1


@dataclass(frozen=True, slots=True)
class _Gap:
    """Without a Master."""

    began_s: float
    ended_s: float
    """A new one decides over all replicas."""

    def has(self, answer: Answer) -> bool:
        """Whether its request was sent meanwhile."""
        return self.began_s <= answer.sent_s < self.ended_s


@dataclass(frozen=True, slots=True)
class _Found:
    """Of all repetitions."""

    undisturbed_ttfts_s: list[float] = field(default_factory=list)
    gap_ttfts_s: list[float] = field(default_factory=list)
    gaps_s: list[float] = field(default_factory=list)
    num_failed: list[int] = field(default_factory=list)
    gap_hits_lost: list[float] = field(default_factory=list)
    later_hits_lost: list[float] = field(default_factory=list)
    restart_hits_lost: list[float] = field(default_factory=list)

    def add_to(self, report: Report) -> None:
        """TTFTs of all repetitions together: in the gaps of one there are too few for a p95."""
        gap, others = self.gap_ttfts_s, self.undisturbed_ttfts_s
        say(f"{len(self.gaps_s)} gaps with {len(gap)} requests, {len(others)} undisturbed")
        report.add("gap_ttft_p95_ratio", [percentile(gap, 95) / percentile(others, 95)])
        report.add("gap_ttft_mean_ratio", [fmean(gap) / fmean(others)])
        report.add("gap_failed_requests", [float(sum(self.num_failed))])
        report.add("gap_s", self.gaps_s)
        report.add("gap_hits_lost", self.gap_hits_lost)
        report.add("hits_lost_after_gap", self.later_hits_lost)
        report.add("router_restart_hits_lost", self.restart_hits_lost)


def measure_faults(report: Report, work: Path, repetitions: int, seed: int) -> None:
    """What requests feel of a Master, and of an ingress, that is killed."""
    ids = Random(seed)
    load = SharedPrefixes.drawn(ids)
    plan = _plan(work)
    with closing(Server(plan, work / f"{plan.name}.log")) as server:
        server.wait_until_ready()
        fleet = _Fleet(server, Random(seed))
        asyncio.run(fleet.played(load.arrivals(Random(seed), ids)))  # to warm up
        found = _Found()
        for number in range(repetitions):
            orders = [Random(seed + number) for _ in range(3)]
            asyncio.run(_repeat(fleet, [load.arrivals(each, ids) for each in orders], found))
    found.add_to(report)


def hits_lost(undisturbed: Sequence[Answer], disturbed: Sequence[Answer]) -> float:
    """The share of the tokens found cached when the same requests were undisturbed."""
    return 1 - num_cached_tokens(disturbed) / num_cached_tokens(undisturbed)


async def _repeat(fleet: "_Fleet", arrivals: Sequence[Sequence[Arrival]], found: _Found) -> None:
    expected = await fleet.played(arrivals[0])
    say(f"undisturbed: {summary(arrivals[0], expected)}")
    found.undisturbed_ttfts_s.extend(ttfts_s(expected))

    answers, gaps = await fleet.without_master(arrivals[1])
    found.num_failed.append(sum(bool(each.failure) for each in answers))
    found.gaps_s.extend(each.ended_s - each.began_s for each in gaps)
    pairs = list(zip(expected, answers, strict=True))
    amid = [pair for pair in pairs if any(gap.has(pair[1]) for gap in gaps)]
    later = [pair for pair in pairs if pair[1].sent_s > gaps[0].began_s and pair not in amid]
    found.gap_ttfts_s.extend(each.ttft_s for _, each in amid if not each.failure)
    found.gap_hits_lost.append(hits_lost(*zip(*amid, strict=True)))
    found.later_hits_lost.append(hits_lost(*zip(*later, strict=True)))
    say(f"{len(gaps)} times without Master, {len(amid)} requests: {summary(arrivals[1], answers)}")

    answers, killed_s = await fleet.without_ingress(arrivals[2])
    # What was cut off may find its own blocks when it comes again.
    pairs = [
        (each, answer)
        for each, answer in zip(expected, answers, strict=True)
        if answer.sent_s > killed_s and answer.num_tries == 1
    ]
    found.restart_hits_lost.append(hits_lost(*zip(*pairs, strict=True)))
    num_again = sum(each.num_tries > 1 for each in answers)
    say(
        f"an ingress killed, {num_again} requests sent again, {len(pairs)} later: "
        f"{summary(arrivals[2], answers)}"
    )


class _Fleet:
    """The server, and who is killed there."""

    def __init__(self, server: Server, rng: Random) -> None:
        self._server = server
        self._url = server.target.base_url
        self._rng = rng

    async def played(self, arrivals: Sequence[Arrival]) -> list[Answer]:
        """Undisturbed."""
        await self._settle()
        return await play(self._url, arrivals)

    async def without_master(self, arrivals: Sequence[Arrival]) -> tuple[list[Answer], list[_Gap]]:
        await self._settle()
        playing = asyncio.create_task(play(self._url, arrivals))
        gaps = []
        async with self._admin() as http:
            await asyncio.sleep(_FIRST_KILL_S)
            while not playing.done():
                instance = await _until_ready(http)
                began_s = self._kill(_MASTER)
                await _until_ready(http, other_than=instance)
                gaps.append(_Gap(began_s, perf_counter()))
                await asyncio.wait([playing], timeout=self._rng.uniform(*_UNHARMED_S))
        return await playing, gaps

    async def without_ingress(self, arrivals: Sequence[Arrival]) -> tuple[list[Answer], float]:
        await self._settle()
        playing = asyncio.create_task(play(self._url, arrivals, _NUM_TRIES))
        await asyncio.sleep(_FIRST_KILL_S)
        killed_s = self._kill(_INGRESS)
        return await playing, killed_s

    async def _settle(self) -> None:
        """Until all are there, and have told each other what they know. Raises RtpServeError."""
        began_s = perf_counter()
        while len(self._pids(_INGRESS)) < _NUM_INGRESSES:
            if perf_counter() - began_s > _PATIENCE_S:
                raise RtpServeError(f"an ingress is not back after {_PATIENCE_S:g} s")
            await asyncio.sleep(_POLL_S)
        async with self._admin() as http:
            await _until_ready(http)
        await asyncio.sleep(_SETTLE_S)

    def _admin(self) -> httpx.AsyncClient:
        headers = {"authorization": f"Bearer {_ADMIN_TOKEN}"}
        return httpx.AsyncClient(base_url=self._url, headers=headers, timeout=_PATIENCE_S)

    def _kill(self, marker: str) -> float:
        """When it was. Raises RtpServeError if there is nobody to kill."""
        pids = self._pids(marker)
        if not pids:
            raise RtpServeError(f"no process of the server is a {marker}")
        os.kill(self._rng.choice(pids), signal.SIGKILL)
        return perf_counter()

    def _pids(self, marker: str) -> list[int]:
        return [pid for pid in self._server.pids() if marker in command_line(pid)]


async def _until_ready(http: httpx.AsyncClient, other_than: str = "") -> str:
    """The instance of the Master, once one other than that decides over all replicas. Raises
    RtpServeError if none comes."""
    with suppress(TimeoutError):
        async with asyncio.timeout(_PATIENCE_S):
            while True:
                answer = await http.get("/routing")
                if answer.status_code == 200:
                    standing = answer.json()
                    num_usable = sum(each["is_usable"] for each in standing["workers"])
                    instance: str = standing["instance"]
                    is_ready = standing["age_s"] >= WARM_UP_S and num_usable == _NUM_REPLICAS
                    if instance != other_than and is_ready:
                        return instance
                await asyncio.sleep(_POLL_S)
    raise RtpServeError(f"the Master is not back after {_PATIENCE_S:g} s")


def _plan(work: Path) -> ServerPlan:
    config = fleet_config()
    arguments = config["applications"][0]["args"]
    arguments["ingress"]["num_replicas"] = _NUM_INGRESSES
    arguments["api"] = {"auth": {"admin_token_sha256": sha256(_ADMIN_TOKEN.encode()).hexdigest()}}
    return application("fleet-faults", config, work, kv_bytes=0)
