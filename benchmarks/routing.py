"""What is routing by the Master worth, and what does a decision cost?

    python -m benchmarks.routing --traces DIR [--part NAME] [--json]

Replays on a virtual clock, through the very code that routes, with modelled engines: figures but
`decision_*`, `master_*` and those of real fleets are the same on every machine.
`master_rtt_p95_ms` is what an ingress waits for a Master in another process that decides 200
requests a second; `fleet_*` compare a real fleet of three small replicas with the same under
Serve's router.

`gap_*` are what the requests of such a fleet with two ingresses feel of a Master that is killed
again and again: the p95 of TTFTs until the next one decides ÷ that of all while nobody is killed,
how many fail, how long it takes, and the share of cached tokens that is not found;
`router_restart_hits_lost` is that share of the requests that come after an ingress was killed.

Knobs are tuned on the first half of Mooncake's trace; tests are on its other half and on RTP-LLM's,
6 to 10 workers, three loads each. Ratios are ours ÷ other; the other of `…_vs_best_other_…` is the
best of round robin, power of two, prefix affinity and shortest TTFT in each cell, and the figure is
that of the worst cell.
"""

import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from random import Random
from statistics import fmean

import numpy as np
import typer

from benchmarks.command import run
from benchmarks.report import Report, say
from benchmarks.routing_cells import OURS, RIVALS, Results, ratios, tested, tuned
from benchmarks.routing_decisions import Size, decision_s
from benchmarks.routing_faults import measure_faults
from benchmarks.routing_fleet import measure_fleet
from benchmarks.routing_master import round_trips_s
from benchmarks.routing_scale import replayed
from rtp_serve.config.routing import RoutingConfig
from rtp_serve.errors import ConfigError
from rtp_serve.simulation.chats import Assistants, assistants
from rtp_serve.simulation.engine_model import EngineModel
from rtp_serve.simulation.fleet import SimulatedFleet
from rtp_serve.simulation.ideal import ideal
from rtp_serve.simulation.report import Summary, summarise, table

_SEED = 1
_SMALL_MODEL = EngineModel(
    prefill_base_s=0.008, prefill_token_s=1 / 12_000, step_s=0.006, num_blocks=1000
)
"""A 7B model on a GPU with little memory to spare."""

_ROBOT = Assistants(
    num_requests=10_000,
    requests_per_s=460.0,
    num_assistants=64,
    popularity=0.5,
    shared_fraction=0.35,
)
"""The paper's robot: turns find 7.8 % of tokens cached."""

_MERCHANTS = Assistants(
    num_requests=6000,
    requests_per_s=95.0,
    num_assistants=1,
    shared_fraction=1.0,
    shared_tokens=832,
    min_tokens=1000,
    mean_tokens=2500,
    max_tokens=16_000,
    num_new_tokens=114,
)
"""One prefix that every worker has: what is left to gain is queues."""


_KINDS: tuple[tuple[str, Callable[[Summary], float]], ...] = (
    ("mean", lambda each: each.ttft_mean_s),
    ("p95", lambda each: each.ttft_p95_s),
    ("p99", lambda each: each.ttft_p99_s),
)

_DEFAULT_PARTS = ("decisions", "generated", "machines", "cells")


def main(
    traces: Path | None = typer.Option(None, help="Directory with the traces, for the cells."),
    parts: list[str] | None = typer.Option(
        None,
        "--part",
        help="Default: decisions, generated, machines, cells; also: scale, master, fleet, faults.",
    ),
    scale_requests: int = typer.Option(1_000_000, help="Of `scale`, over 1,000 workers."),
    repetitions: int = typer.Option(3, help="Of what runs in real time."),
    jitters: int = typer.Option(3, help="Replays of a cell, whose mean is told."),
    processes: int = typer.Option(2, help="Replays at a time."),
    as_json: bool = typer.Option(False, "--json"),
) -> None:
    """Print ratios of TTFT and reuse, and the time of a decision."""
    report = Report()
    measures: dict[str, Callable[[Report], None]] = {
        "decisions": _decisions,
        "generated": _generated,
        "machines": _machines,
        "cells": lambda report: _cells(report, traces, jitters, processes),
        "scale": lambda report: _scale(report, scale_requests),
        "master": lambda report: _round_trips(report, repetitions),
        "fleet": lambda report: _fleet(report, repetitions),
        "faults": lambda report: _faults(report, repetitions),
    }
    wanted = parts or _DEFAULT_PARTS
    unknown = sorted(set(wanted) - set(measures))
    if unknown:
        raise ConfigError(f"--part: must be one of {', '.join(measures)}; got {unknown[0]!r}")
    for each in wanted:
        measures[each](report)
    report.show(as_json=as_json)


def _decisions(report: Report) -> None:
    for name, size in (
        ("decision", Size(64, 100_000)),
        ("decision_1000_workers", Size(1000, 1_000_000)),
    ):
        say(f"{name}: {size.num_workers} workers, {size.num_blocks} blocks")
        took = np.array(decision_s(size, 5000)) * 1e6
        report.add(f"{name}_p50_us", [float(np.percentile(took, 50))])
        report.add(f"{name}_p99_us", [float(np.percentile(took, 99))])


def _scale(report: Report, num_requests: int) -> None:
    found = replayed(1000, num_requests)
    say(f"1000 workers, {found.num_requests} requests, hits {found.hit_rate:.3f}")
    report.add("simulation_s", [found.seconds])
    report.add("simulation_us_a_request", [found.seconds / found.num_requests * 1e6])
    report.add("simulation_peak_mib", [found.peak_bytes / (1 << 20)])


def _round_trips(report: Report, repetitions: int) -> None:
    took = [np.array(round_trips_s(200.0, 8.0)) * 1e3 for _ in range(repetitions)]
    report.add("master_rtt_p50_ms", [float(np.percentile(each, 50)) for each in took])
    report.add("master_rtt_p95_ms", [float(np.percentile(each, 95)) for each in took])


def _fleet(report: Report, repetitions: int) -> None:
    with tempfile.TemporaryDirectory(prefix="rtp-bench-") as work:
        measure_fleet(report, Path(work), repetitions, _SEED)


def _faults(report: Report, repetitions: int) -> None:
    with tempfile.TemporaryDirectory(prefix="rtp-bench-") as work:
        measure_faults(report, Path(work), repetitions, _SEED)


def _generated(report: Report) -> None:
    names = ("round-robin", "power-of-two", "prefix-affinity", "shortest-ttft", OURS)
    robot = {each: _replay(_ROBOT, each, 20, _SMALL_MODEL) for each in names}
    say(f"robot, 20 workers\n{table(robot)}")
    turns, ours = robot["round-robin"], robot[OURS]
    report.add("ttft_p95_vs_round_robin", [ours.ttft_p95_s / turns.ttft_p95_s])
    report.add("reuse_vs_round_robin", [ours.cached_tokens / turns.cached_tokens])
    report.add("round_robin_hit_rate", [turns.hit_rate])
    roomy = replace(_SMALL_MODEL, num_blocks=8000)
    merchants = {each: _replay(_MERCHANTS, each, 20, roomy) for each in names}
    say(f"one prefix, 20 workers\n{table(merchants)}")
    turns, ours = merchants["round-robin"], merchants[OURS]
    report.add("queue_only_ttft_p95_vs_round_robin", [ours.ttft_p95_s / turns.ttft_p95_s])
    report.add("queue_only_reuse_vs_round_robin", [ours.cached_tokens / turns.cached_tokens])


def _machines(report: Report) -> None:
    """The fewest of our workers with a mean TTFT no higher than that of 80 that take turns."""
    shape = replace(_ROBOT, requests_per_s=4 * _ROBOT.requests_per_s)
    goal = _replay(shape, "round-robin", 80, _SMALL_MODEL).ttft_mean_s
    trace = assistants(shape, Random(_SEED))
    enough = 80
    too_few = int(ideal(trace, _SMALL_MODEL).prefill_s / trace.duration_s)  # cannot keep up
    while enough - too_few > 1:
        middle = (enough + too_few) // 2
        if _replay(shape, OURS, middle, _SMALL_MODEL).ttft_mean_s <= goal:
            enough = middle
        else:
            too_few = middle
    say(f"{enough} workers do what 80 do that take turns (mean TTFT {goal:.3f} s)")
    report.add("workers_for_80_of_round_robin", [enough])


def _replay(shape: Assistants, policy: str, num_workers: int, model: EngineModel) -> Summary:
    config = RoutingConfig.model_validate({"policy": policy, "block_size": shape.block_size})
    fleet = SimulatedFleet(config, [model] * num_workers, Random(_SEED))
    return summarise(fleet.play(assistants(shape, Random(_SEED)).requests), skip=0.2)


def _cells(report: Report, traces: Path | None, jitters: int, processes: int) -> None:
    if traces is None:
        raise ConfigError("--traces: the part 'cells' needs the directory with the traces")
    knobs = tuned(traces, processes)
    say(f"tuned: {knobs}")
    results = tested(traces, knobs, jitters, processes)
    say(_cells_table(results))
    for name, value in _KINDS:
        by_cell = ratios(results, value)
        report.add(f"ttft_{name}_vs_best_other_worst_cell", [max(by_cell.values())])
        report.add(f"ttft_{name}_vs_best_other", list(by_cell.values()))


def _cells_table(results: Results) -> str:
    """One line a cell, as the documents have it: TTFTs, and ours to the best rival's."""
    lines = ["| cell | " + " | ".join((*RIVALS, OURS)) + " | ÷ best rival |", "|---" * 7 + "|"]
    by_kind = [ratios(results, value) for _, value in _KINDS]
    for cell in by_kind[0]:
        means = (
            " / ".join(f"{fmean(map(value, results[cell, each])):.2f}" for _, value in _KINDS)
            for each in (*RIVALS, OURS)
        )
        compared = " / ".join(f"{kind[cell]:.3f}" for kind in by_kind)
        lines.append(f"| {cell.name} | " + " | ".join(means) + f" | {compared} |")
    return "\n".join(lines)


if __name__ == "__main__":
    run(main)
