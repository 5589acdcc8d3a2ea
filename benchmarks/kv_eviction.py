"""Which blocks does each eviction policy keep, and does the duel keep what the best of them would?

    python -m benchmarks.kv_eviction --traces DIR [--json]

Replays requests of public traces through the index's rules (`block_cache`), at capacities of 1, 4
and 16 % of a trace's distinct blocks. `TRACE_PERCENT_POLICY` is blocks found ÷ blocks wanted,
`…_over_belady` is that ÷ what could be had by knowing the future. `duel_minus_best` is the least,
over traces and capacities, of the duel's hit rate − the best single policy's. Nothing here is
timed: a figure is the same on every machine.
"""

from pathlib import Path

import typer

from benchmarks.block_cache import best_hit_rate, hit_rate
from benchmarks.block_traces import TRACES, BlockTrace, read_trace
from benchmarks.command import run
from benchmarks.report import Report, say
from rtp_serve.kv_store.eviction.registry import POLICIES, make_policy

_PERCENTS = (1, 4, 16)
_DUEL = "duel"


def main(
    traces: Path = typer.Option(..., help="Directory with the traces."),
    as_json: bool = typer.Option(False, "--json"),
) -> None:
    """Print hit rates."""
    report = Report()
    report.add("duel_minus_best", [duel_minus_best(traces, report)])
    report.show(as_json=as_json)


def duel_minus_best(traces: Path, report: Report) -> float:
    """The least over traces and capacities; hit rates go to `report`. Raises ConfigError if a trace
    is not there."""
    leads = []
    for name in TRACES:
        trace = read_trace(traces, name)
        leads += [_replay(name, trace, percent, report) for percent in _PERCENTS]
    return min(leads)


def _replay(name: str, trace: BlockTrace, percent: int, report: Report) -> float:
    """The duel's hit rate − the best single policy's."""
    capacity = max(1, len(trace.keys) * percent // 100)
    say(f"{name}: {capacity} blocks")
    rates = {each: hit_rate(trace, make_policy(each, capacity), capacity) for each in POLICIES}
    belady = best_hit_rate(trace, capacity)
    for policy, rate in (rates | {"belady": belady}).items():
        report.add(f"{name}_{percent}_{policy}", [rate])
    for policy, rate in rates.items():
        report.add(f"{name}_{percent}_{policy}_over_belady", [rate / belady])
    return rates[_DUEL] - max(rate for policy, rate in rates.items() if policy != _DUEL)


if __name__ == "__main__":
    run(main)
