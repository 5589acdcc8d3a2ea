"""What a fleet makes of a trace."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf
from typing import Any, Generic, Protocol, TypeVar

import numpy as np

from rtp_serve.config.simulation import TargetsConfig
from rtp_serve.routing.admission import ttft_target_s
from rtp_serve.routing.types import Floats
from rtp_serve.simulation.report import Summary, summarise
from rtp_serve.simulation.served_table import ServedTable


class Named(Protocol):
    """A fleet, as tables and pictures call it."""

    @property
    def name(self) -> str: ...


Fleet = TypeVar("Fleet", bound=Named)


@dataclass(frozen=True, slots=True, eq=False)
class FleetOutcome(Generic[Fleet]):
    """Of the requests that count. Times are seconds."""

    fleet: Fleet
    summary: Summary | None
    """None if nothing was served."""
    ttft_s: Floats
    """Of each request that was served."""
    itl_s: Floats
    """Mean gap between its tokens, of each that was served and has two at least."""
    ttft_attainment: float
    """Share of all requests, rejected ones among them, that keep the TTFT target."""
    itl_attainment: float
    attainment: float
    """That keep both."""
    goodput_per_s: float
    """Requests that keep both, a second of arrivals."""
    replica_hours: float
    """From the first arrival to the end of the last answer; of a fleet whose size changes, from
    each replica's order to the end of its last answer."""
    ideal_hit_rate: float
    """With one cache that forgets nothing."""

    @property
    def itl_p95_s(self) -> float:
        return float(np.percentile(self.itl_s, 95)) if len(self.itl_s) else 0.0


def outcome(
    fleet: Fleet,
    served: ServedTable,
    targets: TargetsConfig,
    skip: float,
    replica_hours: float,
    ideal_hit_rate: float,
) -> FleetOutcome[Fleet]:
    """Of `served` without the first `skip` of it."""
    counted = slice(int(skip * len(served)), None)
    done = ~served.is_rejected[counted]
    ttft_s, itl_s = served.ttft_s[counted], served.itl_s[counted]
    lengths = served.num_tokens[counted].tolist()
    keeps_ttft = done & (ttft_s <= [ttft_target_s(targets, each) for each in lengths])
    keeps_itl = done & (itl_s <= (inf if targets.itl_s is None else targets.itl_s))
    num_good = int((keeps_ttft & keeps_itl).sum())
    arrival_s = served.arrival_s[counted]
    span_s = float(arrival_s[-1] - arrival_s[0])
    return FleetOutcome(
        fleet,
        summarise(served, skip) if done.any() else None,
        ttft_s[done],
        itl_s[done & (served.num_new_tokens[counted] > 1)],
        float(keeps_ttft.mean()),
        float(keeps_itl.mean()),
        num_good / len(done),
        num_good / span_s if span_s else float(num_good),
        replica_hours,
        ideal_hit_rate,
    )


def table(rows: Sequence[FleetOutcome[Any]]) -> str:
    """One line a fleet; TTFT in seconds, ITL in milliseconds."""
    width = max([len(each.fleet.name) for each in rows] + [len("replicas")])
    heads = ("mean", "p50", "p95", "p99", "ITL p95", "kept", "goodput", "rep.·h", "hits", "ideal")
    lines = [f"{'replicas':{width}}" + "".join(f"{head:>9}" for head in heads) + " rejected"]
    return "\n".join(lines + [_line(each, width) for each in rows])


def _line(each: FleetOutcome[Any], width: int) -> str:
    found = each.summary
    if found is None:
        return f"{each.fleet.name:{width}}  serves nothing"
    times = (found.ttft_mean_s, found.ttft_p50_s, found.ttft_p95_s, found.ttft_p99_s)
    return (
        f"{each.fleet.name:{width}}"
        + "".join(f"{value:9.3f}" for value in times)
        + f"{1000 * each.itl_p95_s:9.1f}{100 * each.attainment:8.1f}%"
        + f"{each.goodput_per_s:9.2f}{each.replica_hours:9.2f}"
        + f"{100 * found.hit_rate:8.1f}%{100 * each.ideal_hit_rate:8.1f}%{found.num_rejected:9}"
    )
