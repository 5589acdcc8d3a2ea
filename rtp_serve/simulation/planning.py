"""How many replicas: fleets played on one trace, and the smallest that keeps its targets.

More replicas are taken to be no worse. So the search halves: in a disaggregated fleet first the
fewest that prefill, with as many that decode as there may be, then the fewest that decode, with
those. What prefill replicas do hardly depends on how many decode, unless these refuse requests.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace
from random import Random

from rtp_serve.config.routing import RoutingConfig
from rtp_serve.config.simulation import FleetConfig, SimulationConfig
from rtp_serve.errors import ConfigError
from rtp_serve.routing.types import Role
from rtp_serve.simulation.engine_model import EngineModel
from rtp_serve.simulation.fleet import SimulatedFleet
from rtp_serve.simulation.ideal import ideal
from rtp_serve.simulation.outcome import FleetOutcome, outcome
from rtp_serve.simulation.requests import Trace

PlannedFleet = FleetOutcome[FleetConfig]

Progress = Callable[[FleetConfig, int, int], None]
"""Called with a fleet, how many requests have come to it, and of how many."""


class Planner:
    """Plays each fleet once."""

    def __init__(
        self,
        config: SimulationConfig,
        trace: Trace,
        model: EngineModel,
        progress: Progress | None = None,
    ) -> None:
        """`trace` is what is played, paced already."""
        self._config, self._trace, self._model = config, trace, model
        self._progress = progress
        self._ideal = ideal(trace, model, config.trace.warm_up)
        self._outcomes: dict[FleetConfig, PlannedFleet] = {}

    @property
    def outcomes(self) -> tuple[PlannedFleet, ...]:
        """Of all fleets that were played: mixed ones first, then by size."""

        def order(each: PlannedFleet) -> tuple[bool, int, int]:
            return bool(each.fleet.prefill), each.fleet.num_replicas, each.fleet.prefill

        return tuple(sorted(self._outcomes.values(), key=order))

    def play(self, fleet: FleetConfig) -> PlannedFleet:
        found = self._outcomes.get(fleet)
        if found is None:
            found = self._outcomes[fleet] = self._played(fleet)
        return found

    def sweep(self, num_replicas: int) -> Iterator[PlannedFleet]:
        """Every split into replicas that prefill and that decode."""
        for prefill in range(1, num_replicas):
            yield self.play(FleetConfig(prefill=prefill, decode=num_replicas - prefill))

    def fewest_mixed(self) -> PlannedFleet | None:
        """None if as many as there may be are too few."""
        return self._fewest(lambda count: FleetConfig(mixed=count))

    def fewest_disaggregated(self) -> PlannedFleet | None:
        """None if as many of each as there may be are too few."""
        most = self._config.search.max_replicas
        least = self._fewest(lambda count: FleetConfig(prefill=count, decode=most))
        if least is None:
            return None
        prefill = least.fleet.prefill
        return self._fewest(lambda count: FleetConfig(prefill=prefill, decode=count))

    def _fewest(self, fleet: Callable[[int], FleetConfig]) -> PlannedFleet | None:
        wanted, most = self._config.targets.attainment, self._config.search.max_replicas
        best = self.play(fleet(most))
        if best.attainment < wanted:
            return None
        enough, too_few = most, 0
        while enough - too_few > 1:
            middle = (enough + too_few) // 2
            found = self.play(fleet(middle))
            if found.attainment >= wanted:
                enough, best = middle, found
            else:
                too_few = middle
        return best

    def _played(self, fleet: FleetConfig) -> PlannedFleet:
        config, trace = self._config, self._trace
        roles = (
            [Role.MIXED] * fleet.mixed
            + [Role.PREFILL] * fleet.prefill
            + [Role.DECODE] * fleet.decode
        )
        simulated = SimulatedFleet(
            _routing(config.routing, trace.block_size, len(roles)),
            [self._model] * len(roles),
            Random(config.seed),
            roles=roles,
        )
        served = simulated.play(trace.requests, self._counter(fleet))
        hours = fleet.num_replicas * served.span_s / 3600
        skip = config.trace.warm_up
        return outcome(fleet, served, config.targets, skip, hours, self._ideal.hit_rate)

    def _counter(self, fleet: FleetConfig) -> Callable[[int], None] | None:
        progress, total = self._progress, len(self._trace.requests)
        if progress is None:
            return None
        return lambda number: progress(fleet, number, total)


def engine_model(config: SimulationConfig, block_size: int) -> EngineModel:
    """As it is given, with as many blocks as its cache holds; ConfigError if that is none."""
    values = config.engine.model_dump()
    num_blocks = values.pop("cache_tokens") // block_size
    if not num_blocks:
        raise ConfigError(
            f"engine.cache_tokens: must be at least one block of the trace, {block_size} tokens "
            f"(got {config.engine.cache_tokens})"
        )
    return EngineModel(**values, num_blocks=num_blocks)


def played_trace(trace: Trace, config: SimulationConfig) -> Trace:
    """The part that is played, from 0, at its pace. Raises ConfigError if that is nothing."""
    part = trace.part(config.trace.first, config.trace.last)
    if not part.requests:
        raise ConfigError(
            f"trace.first, trace.last: nothing is left of {len(trace.requests)} requests between "
            f"{config.trace.first:g} and {config.trace.last:g}"
        )
    return replace(part.paced(1 / config.trace.pace), name=trace.name)


def _routing(config: RoutingConfig, block_size: int, num_replicas: int) -> RoutingConfig:
    return config.model_copy(update={"block_size": block_size, "max_workers": num_replicas})
