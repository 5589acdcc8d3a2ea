"""What one fleet makes of a trace."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from rtp_serve.config.simulation import FleetConfig, TargetsConfig
from rtp_serve.routing.admission import ttft_target_s
from rtp_serve.routing.types import Floats
from rtp_serve.simulation.report import Summary, summarise
from rtp_serve.simulation.requests import Served


@dataclass(frozen=True, slots=True, eq=False)
class FleetOutcome:
    """Of the requests that count. Times are seconds."""

    fleet: FleetConfig
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
    """From the first arrival to the end of the last answer."""
    ideal_hit_rate: float
    """With one cache that forgets nothing."""

    @property
    def itl_p95_s(self) -> float:
        return float(np.percentile(self.itl_s, 95)) if len(self.itl_s) else 0.0


def outcome(
    fleet: FleetConfig,
    served: Sequence[Served],
    targets: TargetsConfig,
    skip: float,
    ideal_hit_rate: float,
) -> FleetOutcome:
    """Of all of `served`, the first `skip` of which count for replica-hours only."""
    counted = served[int(skip * len(served)) :]
    done = [each for each in counted if not each.is_rejected]
    keeps_ttft = [each.ttft_s <= ttft_target_s(targets, each.request.num_tokens) for each in done]
    keeps_itl = [targets.itl_s is None or each.itl_s <= targets.itl_s for each in done]
    num_good = sum(map(all, zip(keeps_ttft, keeps_itl, strict=True)))
    span_s = counted[-1].request.arrival_s - counted[0].request.arrival_s
    start_s = served[0].request.arrival_s
    end_s = max(each.request.arrival_s + each.e2e_s for each in served)
    return FleetOutcome(
        fleet,
        summarise(served, skip) if done else None,
        np.array([each.ttft_s for each in done]),
        np.array([each.itl_s for each in done if each.request.num_new_tokens > 1]),
        sum(keeps_ttft) / len(counted),
        sum(keeps_itl) / len(counted),
        num_good / len(counted),
        num_good / span_s if span_s else float(num_good),
        fleet.num_replicas * (end_s - start_s) / 3600,
        ideal_hit_rate,
    )


def table(rows: Sequence[FleetOutcome]) -> str:
    """One line a fleet; TTFT in seconds, ITL in milliseconds."""
    width = max([len(each.fleet.name) for each in rows] + [len("replicas")])
    heads = ("mean", "p50", "p95", "p99", "ITL p95", "kept", "goodput", "rep.·h", "hits", "ideal")
    lines = [f"{'replicas':{width}}" + "".join(f"{head:>9}" for head in heads) + " rejected"]
    return "\n".join(lines + [_line(each, width) for each in rows])


def _line(each: FleetOutcome, width: int) -> str:
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
