"""Replays of a trace's half with a fleet that ours or Serve's rule scales.

The modelled engine prefills 4,000 tokens a second in chunks of 256 and takes 15 ms a decode step; a
replica takes 5 s to start; figures are pushed every 0.5 s. Both have 1 to 32 replicas.
"""

from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import cache
from itertools import pairwise, product
from multiprocessing import get_context
from pathlib import Path
from random import Random
from typing import Any

from rtp_serve.config.autoscaling import AutoscalingConfig
from rtp_serve.config.routing import RoutingConfig, SloClass
from rtp_serve.routing.admission import ttft_target_s
from rtp_serve.simulation.diurnal import Diurnal, diurnal
from rtp_serve.simulation.engine_model import EngineModel
from rtp_serve.simulation.ongoing_requests import OngoingRequests, OngoingRequestsScaler
from rtp_serve.simulation.planned_replicas import PlannedReplicas
from rtp_serve.simulation.requests import Served, Trace
from rtp_serve.simulation.scaled_fleet import ScaledFleet, Scaler
from rtp_serve.simulation.traces import read_trace

MAX_REPLICAS = 32
OURS, SERVE = "ours", "serve"
DIURNAL = "diurnal"
TUNED, TESTED = (0.0, 0.5), (0.5, 1.0)
"""Halves, by requests."""

TARGETS = SloClass.model_validate(
    {
        "ttft": [
            {"max_tokens": 1024, "ttft_s": 1.0},
            {"max_tokens": 4096, "ttft_s": 2.5},
            {"ttft_s": 5.0},
        ],
        "itl_s": 0.15,
    }
)

_MODEL = EngineModel(prefill_token_s=1 / 4000, step_s=0.015, chunk_tokens=256, num_blocks=256)
_NUM_PARTS = 3
_SEED = 1

Knobs = tuple[tuple[str, float], ...]

GRIDS: dict[str, list[Knobs]] = {
    OURS: [
        (("downscale_delay_s", delay), ("level_s", level))
        for delay, level in product((10.0, 30.0, 60.0), (0.6, 1.0, 3.0))
    ],
    SERVE: [
        (
            ("target_ongoing_requests", target),
            ("upscale_delay_s", 0.0),
            ("downscale_delay_s", delay),
            ("look_back_period_s", look_back),
        )
        for target, delay, look_back in (
            *product((0.5, 1.0, 1.5, 2.0, 3.0), (30.0, 60.0, 120.0, 180.0, 300.0), (1.0,)),
            *product((1.0, 1.5, 2.0), (60.0, 180.0), (5.0,)),
        )
    ],
}


@dataclass(frozen=True, slots=True)
class Play:
    """One replay."""

    trace: str
    """A file's path, or "diurnal"."""
    part: tuple[float, float]
    scaler: str
    knobs: Knobs


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of it."""

    attainment: float
    """Share of requests that kept both targets."""
    worst_attainment: float
    """Of the thirds of the trace, the least."""
    replica_hours: float
    most_replicas: int


def play(which: Play) -> Outcome:
    trace = _trace(which.trace).part(*which.part).paced(1.0)
    routing = RoutingConfig(block_size=trace.block_size)
    fleet = ScaledFleet(routing, _MODEL, TARGETS, lambda: _scaler(which), Random(_SEED))
    run = fleet.run(trace)
    kept = [_is_kept(each) for each in run.served]
    bounds = [len(kept) * i // _NUM_PARTS for i in range(_NUM_PARTS + 1)]
    parts = [_share(kept[a:b]) for a, b in pairwise(bounds)]
    most = max(target for _, _, target in run.sizes)
    return Outcome(_share(kept), min(parts), run.replica_s / 3600, most)


def play_all(plays: Iterable[Play], num_processes: int) -> list[Outcome]:
    with ProcessPoolExecutor(num_processes, mp_context=get_context("spawn")) as pool:
        return list(pool.map(play, plays))


def _scaler(which: Play) -> Scaler:
    knobs: dict[str, Any] = dict(which.knobs)
    if which.scaler == SERVE:
        return OngoingRequestsScaler(OngoingRequests(max_replicas=MAX_REPLICAS, **knobs))
    return PlannedReplicas(
        AutoscalingConfig.model_validate(
            {
                "max_replicas": MAX_REPLICAS,
                "downscale_delay_s": knobs["downscale_delay_s"],
                "downscale_step_s": 1.0,
                "targets": TARGETS,
                "forecast": {"level_s": knobs["level_s"], "trend_s": 30.0},
            }
        )
    )


def _is_kept(served: Served) -> bool:
    assert TARGETS.itl_s is not None
    is_soon = served.ttft_s <= ttft_target_s(TARGETS, served.request.num_tokens)
    return is_soon and served.itl_s <= TARGETS.itl_s


def _share(kept: Sequence[bool]) -> float:
    return sum(kept) / len(kept)


@cache
def _trace(name: str) -> Trace:
    if name == DIURNAL:
        return diurnal(Diurnal(), Random(_SEED))
    return read_trace(Path(name))
