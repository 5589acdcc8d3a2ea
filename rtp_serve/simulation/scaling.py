"""What scalers make of a trace: the same replicas, as many as each of them asks for."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from random import Random

from rtp_serve.autoscaling.types import ScalingDecision
from rtp_serve.config.autoscaling import AutoscalingConfig
from rtp_serve.config.simulation import SimulationConfig
from rtp_serve.errors import ConfigError
from rtp_serve.simulation.engine_model import EngineModel
from rtp_serve.simulation.ideal import ideal
from rtp_serve.simulation.ongoing_requests import OngoingRequests, OngoingRequestsScaler
from rtp_serve.simulation.outcome import FleetOutcome, outcome
from rtp_serve.simulation.planned_replicas import PlannedReplicas
from rtp_serve.simulation.requests import Trace
from rtp_serve.simulation.scaled_fleet import FleetTimes, ScaledFleet, Scaler
from rtp_serve.simulation.served_table import ServedTable


@dataclass(frozen=True, slots=True)
class ScaledReplicas:
    """How many there were."""

    name: str
    """Of the scaler."""
    sizes: tuple[tuple[float, int, int], ...]
    """(time, running, target), when one of them has changed."""
    changes: tuple[tuple[float, ScalingDecision], ...]
    """With their times and reasons; none of Serve's rule, which gives no reasons."""

    @property
    def most(self) -> int:
        """Replicas that ran at once."""
        return max(running for _, running, _ in self.sizes)

    @property
    def num_changes(self) -> int:
        """Of the number that shall be."""
        return sum(before != after for (*_, before), (*_, after) in pairwise(self.sizes))


ScaledOutcome = FleetOutcome[ScaledReplicas]


def play_scaled(
    config: SimulationConfig, trace: Trace, model: EngineModel
) -> Sequence[ScaledOutcome]:
    """Of every scaler. `trace` is what is played, paced already. Raises ConfigError without any."""
    if config.autoscaled is None:
        raise ConfigError("autoscaled: --autoscale plays the scalers that it lists (got none)")
    ideal_hit_rate = ideal(trace, model, config.trace.warm_up).hit_rate
    return [
        _played(config, name, scaling, trace, model, ideal_hit_rate)
        for name, scaling in config.autoscaled.scalers.items()
    ]


def _played(
    config: SimulationConfig,
    name: str,
    scaling: AutoscalingConfig,
    trace: Trace,
    model: EngineModel,
    ideal_hit_rate: float,
) -> ScaledOutcome:
    assert config.autoscaled is not None
    if "targets" not in scaling.model_fields_set:
        scaling = scaling.model_copy(update={"targets": config.targets})
    scaler = _scaler(scaling)
    sizes = {"block_size": trace.block_size, "max_workers": scaling.max_replicas}
    first = scaling.initial_replicas
    fleet = ScaledFleet(
        config.routing.model_copy(update=sizes),
        model,
        scaling.targets,
        lambda: scaler,
        Random(config.seed),
        num_initial=scaling.min_replicas if first is None else first,
        times=FleetTimes(config.autoscaled.startup_s, config.autoscaled.push_period_s),
    )
    run = fleet.run(trace)
    changes = scaler.changes if isinstance(scaler, PlannedReplicas) else ()
    return outcome(
        ScaledReplicas(name, tuple(run.sizes), tuple(changes)),
        ServedTable.of(run.served),
        config.targets,
        config.trace.warm_up,
        run.replica_s / 3600,
        ideal_hit_rate,
    )


def _scaler(config: AutoscalingConfig) -> Scaler:
    if config.policy == "slo":
        return PlannedReplicas(config)
    assert config.target_ongoing_requests is not None
    return OngoingRequestsScaler(
        OngoingRequests(
            config.target_ongoing_requests,
            config.upscale_delay_s,
            config.hold_s,
            config.look_back_period_s,
            min_replicas=config.min_replicas,
            max_replicas=config.max_replicas,
        )
    )
