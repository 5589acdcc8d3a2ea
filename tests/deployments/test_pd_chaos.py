"""Faults at every state of a transfer, on either side, under a hundred streams.

Of all combinations the suite takes some; all of them, with a table of what each cost:
`pytest tests/deployments/test_pd_chaos.py --all-faults FILE`
"""

import asyncio
import itertools
import json
import math
import os
import random
import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest
from ray import serve
from ray.serve.handle import DeploymentHandle

from deployments.disaggregated import assemble
from rtp_serve.clock import WallClock
from rtp_serve.config.disaggregation import DECODE_REPLICA, PREFILL_REPLICA, DisaggregatedConfig
from tests.deployments.applications import RaySession, RunningApp, running, tiny_engine
from tests.deployments.faults import (
    CUT,
    HOLD,
    KILL,
    STOP,
    Bench,
    FaultyBuild,
    Step,
    Struck,
    states_of,
)

pytestmark = pytest.mark.ray

NUM_STREAMS = 100
NUM_REPLICAS = 2
LEASE_S = 1.0
RESUME_S = 5.0
"""The most that a stream waits for its next token after a loss was noticed, at the 95th
percentile."""

CANCEL_S = 1.0
"""After so long nothing is held for a client that has gone."""

PAUSE = "pause"
"""Stopped, and continued after two leases."""

_NUM_PASSED = 6
_WAIT_S = 60.0
_START_S = 90.0
_TRIES = 10

DEPLOYMENTS = {"decode": DECODE_REPLICA, "prefill": PREFILL_REPLICA}
FAULTS = (KILL, STOP, PAUSE, CUT)


@dataclass(frozen=True, slots=True)
class Case:
    """A fault that strikes a side in a state."""

    side: str
    state: str
    fault: str

    def __str__(self) -> str:
        return f"{self.side}-{self.state.lower()}-{self.fault}"

    @property
    def steps(self) -> tuple[Step, ...]:
        fault = STOP if self.fault == PAUSE else self.fault
        return steps_to(self.side, self.state, fault, _NUM_PASSED)


def steps_to(side: str, state: str, fault: str, num_passed: int) -> tuple[Step, ...]:
    """Nobody settles whose channel was not cut before."""
    if state == "SETTLING":
        return Step(side, "RECEIVING", CUT, num_passed), Step(side, state, fault)
    return (Step(side, state, fault, num_passed),)


def all_cases() -> list[Case]:
    places = [(side, state) for side in DEPLOYMENTS for state in states_of(side)]
    return [Case(side, state, fault) for side, state in places for fault in FAULTS]


def some_cases() -> list[Case]:
    """Each state, with faults that are noticed at once."""
    return [
        Case(side, state, (KILL, CUT)[(index + shift) % 2])
        for shift, side in enumerate(DEPLOYMENTS)
        for index, state in enumerate(states_of(side))
    ]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "case" in metafunc.fixturenames:
        is_all = metafunc.config.getoption("all_faults", None) is not None
        metafunc.parametrize("case", all_cases() if is_all else some_cases(), ids=str)


@dataclass(slots=True)
class Answer:
    """What a client got of its stream."""

    text: str = ""
    logprobs: list[float] = field(default_factory=list)
    finish_reason: str | None = None
    times_s: list[float] = field(default_factory=list)
    """Of its events."""

    @property
    def content(self) -> tuple[str, list[float], str | None]:
        return self.text, self.logprobs, self.finish_reason

    def next_after(self, at_s: float) -> float | None:
        """Seconds until the next token after a time; None if it had ended."""
        return next((time_s - at_s for time_s in self.times_s if time_s > at_s), None)


class Application:
    """Replicas of both sides under faults, and their clients."""

    def __init__(self, app: RunningApp, bench: Bench) -> None:
        self.app = app
        self.bench = bench
        self._handles = {
            side: serve.get_deployment_handle(deployment, app.name)
            for side, deployment in DEPLOYMENTS.items()
        }

    async def answers(self, salt: str) -> list[Answer]:
        """Of a hundred streams at once. No prompt is cached that has not run under this salt."""
        limits = httpx.Limits(max_connections=None)
        async with httpx.AsyncClient(timeout=_WAIT_S, limits=limits) as http:
            return await asyncio.gather(*(self._answer(http, body) for body in make_bodies(salt)))

    async def _answer(self, http: httpx.AsyncClient, body: dict[str, Any]) -> Answer:
        answer, clock = Answer(), WallClock()
        async for event in self.events(http, body):
            assert "error" not in event, event
            choice = event["choices"][0]
            answer.times_s.append(clock.monotonic())
            answer.text += choice["text"]
            answer.finish_reason = choice["finish_reason"]
            if choice["logprobs"]:
                answer.logprobs += choice["logprobs"]["token_logprobs"]
        return answer

    async def events(self, http: httpx.AsyncClient, body: dict[str, Any]) -> AsyncIterator[Any]:
        """Of one stream, to its end."""
        url = f"{self.app.url}/v1/completions"
        async with http.stream("POST", url, json={**body, "stream": True}) as response:
            assert response.status_code == 200, await response.aread()
            rest = b""
            async for piece in response.aiter_bytes():
                *events, rest = (rest + piece).split(b"\n\n")
                for event in events:
                    if event == b"data: [DONE]":
                        return
                    yield json.loads(event.removeprefix(b"data: "))
        raise AssertionError("the stream broke off")

    async def until_whole(self) -> None:
        """All replicas are there, and idle."""
        await until(lambda: self._is_whole(), "not all replicas are there", _START_S)
        await self.until_idle(30.0)

    async def _is_whole(self) -> bool:
        pids = [await self.pids(side) for side in DEPLOYMENTS]
        return all(len(each) == NUM_REPLICAS for each in pids)

    async def pids(self, side: str) -> list[int]:
        return await asyncio.to_thread(self.app.pids, DEPLOYMENTS[side])

    async def until_idle(self, seconds: float) -> None:
        """Nothing runs, waits or is held, on either side; looked at once more after that time."""
        clock = WallClock()
        deadline_s = clock.monotonic() + seconds
        while True:
            is_last = clock.monotonic() > deadline_s
            held = await self._what_is_held()
            if not held:
                return
            assert not is_last, held
            await asyncio.sleep(0.02)

    async def _what_is_held(self) -> dict[str, float]:
        held: dict[str, float] = {}
        for side, handle in self._handles.items():
            for replica, text in await metrics_texts(handle):
                for name in _HELD:
                    value = sum(
                        float(line.rsplit(" ", 1)[1])
                        for line in text.splitlines()
                        if line.startswith(f"rtp_serve:{name}")
                    )
                    if value:
                        held[f"{side} {replica} {name}"] = value
        return held


_HELD = (
    "num_requests_running",
    "num_requests_waiting",
    "kv_cache_usage_ratio",
    "running_transfers",
    "published_prompts",
)
"""Gauges of replicas."""


async def metrics_texts(handle: DeploymentHandle) -> list[tuple[str, str]]:
    """Of the replicas that answer."""
    response = handle.broadcast("metrics_text")
    answers = await response.results_async(timeout_s=2.0, return_exceptions=True)
    return [answer for answer in answers if not isinstance(answer, Exception)]


async def until(is_so: Callable[[], Awaitable[Any]], otherwise: str, seconds: float = 30.0) -> Any:
    """What it gives when it is true. It is asked once more after the time has passed."""
    clock = WallClock()
    deadline_s = clock.monotonic() + seconds
    while True:
        is_last = clock.monotonic() > deadline_s
        if found := await is_so():
            return found
        assert not is_last, otherwise
        await asyncio.sleep(0.02)


def make_bodies(salt: str) -> list[dict[str, Any]]:
    """Short and long prompts with and without a common beginning, greedy and seeded."""
    rng = random.Random(7)
    letters = "abcdefghij klmnop"
    shared = "".join(rng.choices(letters, k=200))
    bodies = []
    for number in range(NUM_STREAMS):
        own = "".join(rng.choices(letters, k=rng.choice((1, 15, 16, 17, 40, 160, 600))))
        body = {"prompt": shared[: rng.choice((0, 0, 64, 200))] + own, "max_tokens": 24}
        body |= rng.choice(({"temperature": 0}, {"temperature": 1.0, "seed": number}))
        bodies.append(body | {"ignore_eos": True, "logprobs": 1, "cache_salt": salt})
    return bodies


@pytest.fixture(scope="module")
def served(
    session: RaySession, tiny_model: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Application]:
    replica = {
        "num_replicas": NUM_REPLICAS,
        "num_cpus": 0.25,
        "health_check_period_s": 0.5,
        "health_check_timeout_s": 2.0,
    }
    config = DisaggregatedConfig(
        engine={**tiny_engine(tiny_model), "dtype": "float32"},
        replica=replica,
        prefill={"replica": replica},
        transfer={"choice": "always", "lease_s": LEASE_S},
    )
    root = tmp_path_factory.mktemp("faults")
    with running(session, "pd-chaos", assemble(config, FaultyBuild(root))) as app:
        yield Application(app, Bench(root))
        files = set[str]().union(*(files_mapped(pid) for pid in app.pids(DECODE_REPLICA)))
    assert not [file for file in files if Path(file).exists()]


def files_mapped(pid: int) -> set[str]:
    """Of shared memory, by a process; those of others."""
    lines = Path(f"/proc/{pid}/maps").read_text().splitlines()
    return {line.split(maxsplit=5)[5] for line in lines if "/dev/shm/rtp_serve-" in line}


@pytest.fixture(scope="module")
def expected(served: Application) -> list[Any]:
    """What an undisturbed run gives."""

    async def scenario() -> list[Any]:
        await served.until_whole()
        return [answer.content for answer in await served.answers("undisturbed")]

    return asyncio.run(scenario())


@dataclass(frozen=True, slots=True)
class Cost:
    """What a case cost those streams that had not ended."""

    case: Case
    detection_s: float
    waits_s: list[float]
    """From when it was noticed to the next token."""


@pytest.fixture(scope="module")
def costs(request: pytest.FixtureRequest) -> Iterator[list[Cost]]:
    """Of all cases that have passed."""
    costs: list[Cost] = []
    yield costs
    path = request.config.getoption("all_faults", None)
    if path is not None:
        rows = [row(str(cost.case), [cost]) for cost in costs]
        for side, fault in itertools.product(DEPLOYMENTS, FAULTS):
            alike = [each for each in costs if (each.case.side, each.case.fault) == (side, fault)]
            rows.append(row(f"{side}, {fault}", alike))
        Path(path).write_text("\n".join(rows) + "\n")


def test_no_client_notices(served: Application, expected: list[Any], costs: list[Cost], case: Case):
    async def scenario() -> None:
        streams, struck = await strike(served, expected, case)
        try:
            noticed_s = await until_noticed(served, case, struck.pid, struck.at_s)
            answers = await streams
        finally:  # what was late comes now, and must not count
            with suppress(ProcessLookupError):
                os.kill(struck.pid, signal.SIGCONT)
        await served.until_idle(2 * LEASE_S)
        assert [answer.content for answer in answers] == expected
        waits_s = sorted(filter(None, (answer.next_after(noticed_s) for answer in answers)))
        costs.append(Cost(case, noticed_s - struck.at_s, waits_s))
        assert percentile(waits_s, 0.95) <= RESUME_S

    asyncio.run(scenario())


async def strike(
    served: Application, expected: list[Any], case: Case
) -> tuple["asyncio.Task[list[Answer]]", Struck]:
    """Streams, and what has struck them. Nothing does while decode replicas compute prompts
    themselves, as both prefill replicas have failed them a moment ago."""
    for number in range(_TRIES):
        await served.until_whole()
        served.bench.arm(*case.steps)
        streams = asyncio.create_task(served.answers(f"{case} {number}"))
        struck = await until(struck_or_over(served.bench, streams), "it was not struck", _WAIT_S)
        if struck is not True:
            return streams, struck
        assert [answer.content for answer in await streams] == expected
    raise AssertionError("all streams ended before it was struck")


def struck_or_over(bench: Bench, streams: "asyncio.Task[Any]") -> Callable[[], Awaitable[Any]]:
    async def look() -> Any:
        return bench.struck() or streams.done()

    return look


async def until_noticed(served: Application, case: Case, pid: int, at_s: float) -> float:
    """When the others can know of it: of a process or channel that is gone at once, of a prefill
    replica that is silent after the lease, and of such a decode replica when Serve does."""
    if case.fault == PAUSE:
        await asyncio.sleep(2 * LEASE_S)
        os.kill(pid, signal.SIGCONT)
        return at_s + (LEASE_S if case.side == "prefill" else 2 * LEASE_S)
    if case.fault != STOP:
        return at_s
    if case.side == "prefill":
        return at_s + LEASE_S

    async def is_withdrawn() -> bool:
        return pid not in await served.pids("decode")

    await until(is_withdrawn, "Serve has not noticed")
    return WallClock().monotonic()


def row(name: str, costs: list[Cost]) -> str:
    """Cases, streams that had not ended, seconds until it was noticed at the latest, and from then
    to the next token."""
    waits_s = sorted(wait_s for cost in costs for wait_s in cost.waits_s)
    detection_s = max((cost.detection_s for cost in costs), default=0.0)
    p50, p95, last = (percentile(waits_s, share) for share in (0.5, 0.95, 1.0))
    return (
        f"| {name} | {len(costs)} | {len(waits_s)} | {detection_s:.1f} "
        f"| {p50:.2f} | {p95:.2f} | {last:.2f} |"
    )


def percentile(ordered: list[float], share: float) -> float:
    """0 of none."""
    return ordered[math.ceil(share * len(ordered)) - 1] if ordered else 0.0


@pytest.mark.parametrize(
    ("side", "state"), [(side, state) for side in DEPLOYMENTS for state in states_of(side)]
)
def test_a_client_that_goes_leaves_nothing_held(served: Application, side: str, state: str):
    async def scenario() -> None:
        await served.until_whole()
        served.bench.arm(*steps_to(side, state, HOLD, 0))
        body = {"prompt": "x" * 1500, "max_tokens": 2000, "cache_salt": f"{side} {state}"}
        async with httpx.AsyncClient(timeout=_WAIT_S) as http:
            reading = asyncio.create_task(read(served, http, body | {"ignore_eos": True}))
            struck = await until(struck_or_over(served.bench, reading), "it was not struck")
            assert struck is not True, "the stream ended before"
            reading.cancel()
            await asyncio.gather(reading, return_exceptions=True)
        served.bench.release()
        await served.until_idle(CANCEL_S)

    asyncio.run(scenario())


async def read(served: Application, http: httpx.AsyncClient, body: dict[str, Any]) -> None:
    async for event in served.events(http, body):
        assert "error" not in event, event


def test_memory_of_the_dead_is_not_kept(served: Application):
    """Of those that were killed before."""

    async def scenario() -> None:
        await served.until_whole()
        for pid in await served.pids("decode"):
            slots = {file for file in files_mapped(pid) if "-slots" in file}
            assert len(slots) <= NUM_REPLICAS, "more than those of the others that live"

    asyncio.run(scenario())
