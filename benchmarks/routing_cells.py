"""Policies on traces: knobs tuned on one part, tested on others, each at several sizes and loads.

A load is relative: 1 is when the prefill work that is left with one infinite cache would take all
of the workers' time. A cell is played with several jitters of its arrivals, as one late request may
change all that come after it; a figure is the mean over them.

Of every policy those knobs are taken that make its worst ratio the least, over all cells of the
tuned part and over

    mean / bar    p95 / (1.03 · bar)    p99 / (1.03 · bar)

where a bar is the least TTFT of that kind that rivals reach in the cell: for rivals, with any of
their knobs; for ours, with those that were so chosen for them.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import cache
from multiprocessing import get_context
from pathlib import Path
from random import Random
from statistics import mean

from rtp_serve.config.routing import RoutingConfig
from rtp_serve.simulation.engine_model import EngineModel
from rtp_serve.simulation.fleet import SimulatedFleet
from rtp_serve.simulation.ideal import ideal
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
        for requests in (8, 32)
        for ratio in (0.1, 0.5)
    ],
    OURS: [
        {"fleet_price": fleet, "queue_price": queue, "queue_power": power}
        for fleet in (1.0, 2.0)
        for queue in (1.0, 2.0)
        for power in (1.5, 2.0)
    ],
}
LOADS = (0.5, 0.7, 0.85)
SIZES = (6, 8, 10)
CACHE_TOKENS = 1 << 20
"""Of a worker."""

ALLOWED = (1.0, 1.03, 1.03)
"""Ours ÷ the best rival, of mean, p95 and p99."""

_TUNED_SIZE = 8
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
    fleet = SimulatedFleet(config, [model] * cell.num_workers, rng)
    return summarise(fleet.play(trace.requests))


@cache
def _prepared(cell: Cell) -> Trace:
    trace = read_trace(cell.path).part(cell.first, cell.last)
    wanted_s = ideal(trace, EngineModel()).prefill_s / (cell.num_workers * cell.load)
    return trace.paced(wanted_s / trace.duration_s)


Knobs = tuple[tuple[str, float], ...]
Times = tuple[float, float, float]
"""Mean, p95 and p99 TTFT."""

Results = Mapping[tuple[Cell, str], list[Summary]]


def tuned(traces: Path, num_processes: int) -> dict[str, dict[str, float]]:
    """Of every policy its knobs."""
    file, first, last = _TUNED
    cells = [Cell(traces / file, first, last, _TUNED_SIZE, load) for load in LOADS]
    plays = [
        Play(cell, policy, tuple(knobs.items()), 0)
        for policy, grid in GRIDS.items()
        for knobs in grid
        for cell in cells
    ]
    found: dict[str, dict[Knobs, list[Times]]] = {}
    for each, summary in zip(plays, _play_all(plays, num_processes), strict=True):
        found.setdefault(each.policy, {}).setdefault(each.knobs, []).append(times(summary))
    best = _least_worst(found, _bars(grid for each in RIVALS for grid in found[each].values()))
    ours = _bars(found[each][best[each]] for each in RIVALS)
    best[OURS] = _least_worst({OURS: found[OURS]}, ours)[OURS]
    return {policy: dict(knobs) for policy, knobs in best.items()}


def times(summary: Summary) -> Times:
    return summary.ttft_mean_s, summary.ttft_p95_s, summary.ttft_p99_s


def _bars(results: Iterable[Sequence[Times]]) -> list[Times]:
    """The least of each kind, by cell."""
    bars = []
    for by_policy in zip(*results, strict=True):
        mean_s, p95_s, p99_s = map(min, zip(*by_policy, strict=True))
        bars.append((mean_s, p95_s, p99_s))
    return bars


def _least_worst(
    found: Mapping[str, Mapping[Knobs, Sequence[Times]]], bars: Sequence[Times]
) -> dict[str, Knobs]:
    return {
        policy: min(grid, key=lambda knobs: worst_ratio(grid[knobs], bars))
        for policy, grid in found.items()
    }


def worst_ratio(cells: Sequence[Times], bars: Sequence[Times]) -> float:
    """Of mean, p95 and p99 to what is allowed of them, in any cell."""
    return max(
        time / (bar * allowed)
        for found, least in zip(cells, bars, strict=True)
        for time, bar, allowed in zip(found, least, ALLOWED, strict=True)
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
