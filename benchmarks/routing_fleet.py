"""A real fleet of small replicas on this machine: the Master against Serve's own router.

Two applications with equal replicas, of which one is halted while the other runs. In each
repetition both get the same prompts, in the same order and at the same times: turns of assistants
whose instructions many prompts share, and which fit into no single replica's cache all together.
The assistants stay the same, so that caches are warm from the second repetition on; the first one
is left out.
"""

import asyncio
from collections.abc import Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from random import Random
from statistics import fmean
from typing import Any

from benchmarks.plans import PATIENT_S, application, shipped_config
from benchmarks.report import Report, say
from benchmarks.samples import percentile
from benchmarks.servers import SERVED_NAME, Server, ServerPlan
from benchmarks.shared_prefixes import (
    Answer,
    Arrival,
    SharedPrefixes,
    num_cached_tokens,
    play,
    ttfts_s,
)

_NUM_BLOCKS = 160
"""Of each replica: 2,560 tokens."""

_SETTLE_S = 2.0
"""A server that was halted has reports and snapshots to make good."""


def measure_fleet(report: Report, work: Path, repetitions: int, seed: int) -> None:
    """Time to first token and tokens found cached, ours over Serve's."""
    ids = Random(seed)
    load = SharedPrefixes.drawn(ids)
    found: dict[str, list[list[Answer]]] = {"auto": [], "never": []}
    with ExitStack() as stack:
        servers = {}
        for master in found:
            plan = _plan(master, work)
            server = stack.enter_context(closing(Server(plan, work / f"{plan.name}.log")))
            server.wait_until_ready()
            server.halt()
            servers[master] = server
        for number in range(-1, repetitions):
            arrivals = load.arrivals(Random(seed + number), ids)
            order = list(found) if number % 2 else list(found)[::-1]
            for master in order:
                answers = _run(servers[master], arrivals)
                if number >= 0:
                    found[master].append(answers)
                say(f"{servers[master].plan.name} {number}: {summary(arrivals, answers)}")
    pairs = list(zip(found["auto"], found["never"], strict=True))
    ttfts = [(ttfts_s(ours), ttfts_s(others)) for ours, others in pairs]
    report.add(
        "fleet_p95_ttft_vs_serve_default",
        [percentile(ours, 95) / percentile(others, 95) for ours, others in ttfts],
    )
    report.add(
        "fleet_mean_ttft_vs_serve_default", [sum(ours) / sum(others) for ours, others in ttfts]
    )
    report.add(
        "fleet_reuse_vs_serve_default",
        [num_cached_tokens(ours) / num_cached_tokens(others) for ours, others in pairs],
    )


def fleet_config() -> dict[str, Any]:
    """Of three replicas that may be halted: the content of the file, but its port."""
    config = shipped_config("routed.yaml")
    arguments = config["applications"][0]["args"]
    arguments["engine"]["served_model_name"] = SERVED_NAME
    arguments["engine"]["cache"] = {"num_blocks": _NUM_BLOCKS}
    arguments["replica"]["health_check_timeout_s"] = PATIENT_S
    return config


def summary(arrivals: Sequence[Arrival], answers: Sequence[Answer]) -> str:
    """One line. Of a run in which not all requests failed."""
    ttfts = [each.ttft_s for each in answers if not each.failure]
    reuse = num_cached_tokens(answers) / sum(len(each.prompt) for each in arrivals)
    failures = [each.failure for each in answers if each.failure]
    return (
        f"TTFT mean {1e3 * fmean(ttfts):.1f} ms, p95 {1e3 * percentile(ttfts, 95):.1f}, "
        f"tokens cached {reuse:.1%}" + "".join(f"\n  failed: {each}" for each in failures)
    )


def _plan(master: str, work: Path) -> ServerPlan:
    config = fleet_config()
    config["applications"][0]["args"]["routing"] = {"master": master}
    return application(f"fleet-{master}", config, work, kv_bytes=0)


def _run(server: Server, arrivals: Sequence[Arrival]) -> list[Answer]:
    server.resume()
    try:
        return asyncio.run(_settled(server.target.base_url, arrivals))
    finally:
        server.halt()


async def _settled(base_url: str, arrivals: Sequence[Arrival]) -> list[Answer]:
    await asyncio.sleep(_SETTLE_S)
    return await play(base_url, arrivals)
