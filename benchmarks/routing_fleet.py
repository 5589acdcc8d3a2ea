"""A real fleet of small replicas on this machine: the Master against Serve's own router.

Two applications with equal replicas, of which one is halted while the other runs. In each
repetition both get the same prompts, in the same order and at the same times: turns of assistants
whose instructions many prompts share, and which fit into no single replica's cache all together.
"""

import asyncio
from collections.abc import Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from random import Random
from time import perf_counter

import httpx

from benchmarks.plans import PATIENT_S, application, shipped_config
from benchmarks.report import Report, say
from benchmarks.samples import percentile
from benchmarks.servers import SERVED_NAME, Server, ServerPlan

_NUM_BLOCKS = 160
"""Of each replica: 2,560 tokens."""

_VOCABULARY = range(1000, 40_000)


@dataclass(frozen=True, slots=True)
class FleetLoad:
    """Prompts with shared beginnings, at random times."""

    num_requests: int = 90
    requests_per_s: float = 4.0
    num_assistants: int = 9
    shared_tokens: int = 512
    own_tokens: int = 32
    output_tokens: int = 4


@dataclass(frozen=True, slots=True)
class _Arrival:
    after_s: float
    prompt: tuple[int, ...]


def measure_fleet(
    report: Report, work: Path, repetitions: int, seed: int, load: FleetLoad | None = None
) -> None:
    """p95 and mean of the time to first token, ours over Serve's."""
    load = load or FleetLoad()
    found: dict[str, list[list[float]]] = {"auto": [], "never": []}
    with ExitStack() as stack:
        servers = {}
        for master in found:
            plan = _plan(master, work)
            server = stack.enter_context(closing(Server(plan, work / f"{plan.name}.log")))
            server.wait_until_ready()
            server.halt()
            servers[master] = server
        for number in range(-1, repetitions):
            arrivals = _arrivals(load, Random(seed + number))
            order = list(found) if number % 2 else list(found)[::-1]
            for master in order:
                ttfts = _run(servers[master], arrivals, load.output_tokens)
                if number >= 0:  # the first is to warm up
                    found[master].append(ttfts)
                say(
                    f"{servers[master].plan.name} {number}: TTFT mean "
                    f"{1e3 * sum(ttfts) / len(ttfts):.1f} ms, p95 {1e3 * percentile(ttfts, 95):.1f}"
                )
    ours, others = found["auto"], found["never"]
    pairs = list(zip(ours, others, strict=True))
    report.add(
        "fleet_p95_ttft_vs_serve_default",
        [percentile(a, 95) / percentile(b, 95) for a, b in pairs],
    )
    report.add("fleet_mean_ttft_vs_serve_default", [sum(a) / sum(b) for a, b in pairs])


def _plan(master: str, work: Path) -> ServerPlan:
    config = shipped_config("routed.yaml")
    arguments = config["applications"][0]["args"]
    arguments["engine"]["served_model_name"] = SERVED_NAME
    arguments["engine"]["cache"] = {"num_blocks": _NUM_BLOCKS}
    arguments["replica"]["health_check_timeout_s"] = PATIENT_S
    arguments["routing"] = {"master": master}
    return application(f"fleet-{master}", config, work, kv_bytes=0)


def _arrivals(load: FleetLoad, rng: Random) -> Sequence[_Arrival]:
    assistants = [_draw(rng, load.shared_tokens) for _ in range(load.num_assistants)]
    after_s, arrivals = 0.0, []
    for _ in range(load.num_requests):
        after_s += rng.expovariate(load.requests_per_s)
        prompt = rng.choice(assistants) + _draw(rng, load.own_tokens)
        arrivals.append(_Arrival(after_s, prompt))
    return arrivals


def _draw(rng: Random, count: int) -> tuple[int, ...]:
    return tuple(rng.choices(_VOCABULARY, k=count))


def _run(server: Server, arrivals: Sequence[_Arrival], output_tokens: int) -> list[float]:
    """Seconds to first token, in order. Raises httpx.HTTPError if a request fails."""
    server.resume()
    try:
        return asyncio.run(_play(server.target.base_url, arrivals, output_tokens))
    finally:
        server.halt()


async def _play(url: str, arrivals: Sequence[_Arrival], output_tokens: int) -> list[float]:
    async with httpx.AsyncClient(base_url=url, timeout=300) as http:
        # A server that was halted has reports and snapshots to make good.
        await asyncio.sleep(2.0)
        started_s = perf_counter()

        async def one(arrival: _Arrival) -> float:
            await asyncio.sleep(max(0.0, started_s + arrival.after_s - perf_counter()))
            return await _ttft_s(http, arrival.prompt, output_tokens)

        return await asyncio.gather(*map(one, arrivals))


async def _ttft_s(http: httpx.AsyncClient, prompt: Sequence[int], output_tokens: int) -> float:
    body = {
        "model": SERVED_NAME, "prompt": list(prompt), "max_tokens": output_tokens,
        "temperature": 0, "ignore_eos": True, "stream": True,
    }  # fmt: skip
    sent_s = perf_counter()
    first_s = 0.0
    async with http.stream("POST", "/v1/completions", json=body) as answer:
        answer.raise_for_status()
        async for line in answer.aiter_lines():
            if line.startswith("data: {") and not first_s:
                first_s = perf_counter() - sent_s
    return first_s
