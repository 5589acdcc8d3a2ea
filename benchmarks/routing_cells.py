"""Policies on traces: knobs tuned on one part, tested on others, each at several sizes and loads.

A load is relative: 1 is when the prefill work that is left with one infinite cache would take all
of the workers' time. A cell is played with several jitters of its arrivals, as one late request may
change all that come after it; a figure is the mean over them.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import cache
from math import prod
from multiprocessing import get_context
from pathlib import Path
from random import Random
from statistics import mean

from rtp_serve.config.routing import RoutingConfig
from rtp_serve.simulation.engine_model import EngineModel
from rtp_serve.simulation.fleet import SimulatedFleet
from rtp_serve.simulation.report import Summary, summarise
from rtp_serve.simulation.requests import Trace
from rtp_serve.simulation.traces import read_trace

OURS = "priced"
RIVALS = ("round-robin", "power-of-two", "prefix-affinity", "shortest-ttft")
GRIDS: dict[str, list[dict[str, float]]] = {
    "round-robin": [{}],
    "power-of-two": [{}],
    "shortest-ttft": [{}],
    "prefix-affinity": [
        {"imbalance_requests": requests, "match_ratio": ratio}
        for requests in (4, 8, 32)
        for ratio in (0.1, 0.5)
    ],
    "weighted-score": [{"alpha": alpha} for alpha in (0.25, 0.5, 1.0, 2.0)],
    OURS: [
        {"base_price": base, "queue_price": queue}
        for base in (0.0, 0.2)
        for queue in (0.5, 1.0, 1.5, 2.0)
    ],
}
LOADS = (0.5, 0.7, 0.85)
SIZES = (6, 8, 10)
CACHE_TOKENS = 1 << 20
"""Of a worker."""

_TUNED = ("mooncake_conversation.jsonl", 0.0, 0.5)
_TESTED = (("mooncake_conversation.jsonl", 0.5, 1.0), ("rtp_llm_30min.jsonl", 0.0, 1.0))


@dataclass(frozen=True, slots=True)
class Cell:
    """A part of a trace at a load, over some workers."""

    path: Path
    first: float
    last: float
    num_workers: int
    load: float

    @property
    def name(self) -> str:
        return f"{self.path.stem.split('_')[0]} {self.num_workers} × {self.load:g}"


@dataclass(frozen=True, slots=True)
class Play:
    """One replay of a cell."""

    cell: Cell
    policy: str
    knobs: tuple[tuple[str, float], ...]
    jitter: int


def play(which: Play) -> Summary:
    cell = which.cell
    trace = _prepared(cell)
    rng = Random(which.jitter)
    requests = (
        replace(each, arrival_s=each.arrival_s + rng.random(), num_new_tokens=1)
        for each in trace.requests
    )
    trace = replace(trace, requests=tuple(sorted(requests, key=lambda each: each.arrival_s)))
    model = EngineModel(num_blocks=CACHE_TOKENS // trace.block_size)
    config = RoutingConfig.model_validate(
        {"policy": which.policy, "knobs": dict(which.knobs), "block_size": trace.block_size}
    )
    return summarise(SimulatedFleet(config, [model] * cell.num_workers, rng).run(trace))


@cache
def _prepared(cell: Cell) -> Trace:
    trace = read_trace(cell.path).part(cell.first, cell.last)
    wanted_s = least_work_s(trace, EngineModel()) / (cell.num_workers * cell.load)
    return trace.paced(wanted_s / trace.duration_s)


def least_work_s(trace: Trace, model: EngineModel) -> float:
    """Prefill time of all requests, with a cache that forgets nothing."""
    seen: set[bytes] = set()
    work_s = 0.0
    for each in trace.requests:
        found = 0
        while found < len(each.block_hashes) and each.block_hashes[found] in seen:
            found += 1
        seen.update(each.block_hashes)
        cached = min(found * trace.block_size, each.num_tokens - 1)
        work_s += model.prefill_s(each.num_tokens - cached, cached)
    return work_s


Knobs = tuple[tuple[str, float], ...]
Times = tuple[float, float, float]
"""Mean, p95 and p99 TTFT."""

Results = Mapping[tuple[Cell, str], list[Summary]]


def tuned(traces: Path, num_processes: int) -> dict[str, dict[str, float]]:
    """Of each rival the knobs with the least product of mean, p95 and p99 TTFT; of ours those whose
    worst ratio to the best rival, of the three in any cell, is the least."""
    file, first, last = _TUNED
    cells = [Cell(traces / file, first, last, 8, load) for load in LOADS]
    plays = [
        Play(cell, policy, tuple(knobs.items()), 0)
        for policy, grid in GRIDS.items()
        for knobs in grid
        for cell in cells
    ]
    found: dict[str, dict[Knobs, list[Times]]] = {}
    for each, summary in zip(plays, _play_all(plays, num_processes), strict=True):
        found.setdefault(each.policy, {}).setdefault(each.knobs, []).append(_times(summary))
    best = {policy: min(grid, key=lambda k: _product(grid[k])) for policy, grid in found.items()}
    bars = [
        tuple(map(min, zip(*(found[each][best[each]][place] for each in RIVALS), strict=True)))
        for place in range(len(cells))
    ]
    best[OURS] = min(found[OURS], key=lambda knobs: _worst(found[OURS][knobs], bars))
    return {policy: dict(knobs) for policy, knobs in best.items()}


def _times(summary: Summary) -> Times:
    return summary.ttft_mean_s, summary.ttft_p95_s, summary.ttft_p99_s


def _product(cells: list[Times]) -> float:
    return prod(map(prod, cells))


def _worst(cells: list[Times], bars: Sequence[tuple[float, ...]]) -> float:
    return max(
        time / bar
        for times, least in zip(cells, bars, strict=True)
        for time, bar in zip(times, least, strict=True)
    )


def tested(
    traces: Path, knobs: Mapping[str, Mapping[str, float]], jitters: int, num_processes: int
) -> Results:
    """Every policy in every cell."""
    plays = [
        Play(Cell(traces / file, first, last, size, load), policy, tuple(each.items()), jitter)
        for file, first, last in _TESTED
        for size in SIZES
        for load in LOADS
        for policy, each in knobs.items()
        for jitter in range(jitters)
    ]
    results: dict[tuple[Cell, str], list[Summary]] = {}
    for each, summary in zip(plays, _play_all(plays, num_processes), strict=True):
        results.setdefault((each.cell, each.policy), []).append(summary)
    return results


def ratios(results: Results, value: Callable[[Summary], float]) -> dict[Cell, float]:
    """Ours ÷ the best rival's, by cell."""
    cells = dict.fromkeys(cell for cell, _ in results)

    def of(cell: Cell, policy: str) -> float:
        return mean(map(value, results[cell, policy]))

    return {cell: of(cell, OURS) / min(of(cell, each) for each in RIVALS) for cell in cells}


def _play_all(plays: Iterable[Play], num_processes: int) -> list[Summary]:
    with ProcessPoolExecutor(num_processes, mp_context=get_context("spawn")) as pool:
        return list(pool.map(play, plays))
