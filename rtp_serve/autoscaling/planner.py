"""One role's plan: what is needed, by what, and when the number changes."""

from collections.abc import Mapping

from rtp_serve.autoscaling.bursts import BurstMemory
from rtp_serve.autoscaling.decode import DecodeNeed
from rtp_serve.autoscaling.history import RoleHistory
from rtp_serve.autoscaling.prefill import PrefillNeed
from rtp_serve.autoscaling.steps import Steps, step_reason
from rtp_serve.autoscaling.types import Observation, ScalingDecision
from rtp_serve.config.autoscaling import AutoscalingConfig
from rtp_serve.routing.types import Role

_PREFILLS = frozenset({Role.MIXED, Role.PREFILL})
_DECODES = frozenset({Role.MIXED, Role.DECODE})


class RolePlanner:
    """Is asked every period, with what replicas have reported by then."""

    def __init__(self, config: AutoscalingConfig) -> None:
        self._config = config
        self._history = RoleHistory(config)
        self._prefill = PrefillNeed(config)
        self._decode = DecodeNeed(config)
        self._bursts = BurstMemory(config.forecast.memory_s, config.forecast.burst_quantile)
        self._steps = Steps(config, config.hold_s)

    def plan(self, seen: Observation, now: float) -> ScalingDecision:
        """The number of replicas from now on."""
        self._history.observe(seen.loads, now)
        needs, numbers = self._needs(seen, now)
        cause = max(needs, key=lambda name: needs[name])
        need = self._bounded(needs[cause])
        held = self._steps.held(need, now)
        if not seen.num_target:
            return self._woken(seen, need, numbers)
        idle_s = self._history.idle_s(now)
        if seen.num_target == 1 and self._may_end(idle_s):
            reason = f"nobody has asked for {idle_s:.0f} s"
            return ScalingDecision(seen.role, 0, 1, reason, 0, numbers)
        target = self._steps.next(need, held, seen.num_target, now)
        reason = step_reason(target, seen.num_target, cause, need, held)
        return ScalingDecision(seen.role, target, seen.num_target, reason, held, numbers)

    def _needs(self, seen: Observation, now: float) -> tuple[dict[str, int], Mapping[str, float]]:
        """Replicas by what it takes them for, the first cause before others of its size."""
        needs, numbers = {}, {"attained": self._history.attained, "smooth": self._history.smooth}
        if seen.role in _PREFILLS:
            needs["arrivals"], more = self._prefill.expected(self._history)
            numbers |= more
            self._bursts.add(now, sum(self._history.present.num_arrivals), needs["arrivals"])
            needs["backlog"], more = self._prefill.backlog(
                self._history, seen.num_running, seen.num_unrouted
            )
            numbers |= more
            needs["bursts of late"] = self._bursts.num_replicas
        if seen.role in _DECODES:
            needs["decoding"], more = self._decode.replicas(self._history, seen.num_running)
            numbers |= more
        assert needs, f"{seen.role} is not planned for"
        return needs, numbers | {f"needed for {name}": num for name, num in needs.items()}

    def _bounded(self, need: int) -> int:
        """The last one goes for another reason than that it is not needed."""
        return max(1, self._config.min_replicas, min(self._config.max_replicas, need))

    def _may_end(self, idle_s: float) -> bool:
        config = self._config
        return config.min_replicas == 0 and idle_s >= config.downscale_to_zero_delay_s

    def _woken(self, seen: Observation, need: int, numbers: Mapping[str, float]) -> ScalingDecision:
        """From none: as soon as a request waits for a replica."""
        if seen.num_unrouted:
            reason = "a request came to no replica"
            return ScalingDecision(seen.role, need, 0, reason, need, numbers)
        least = self._config.min_replicas
        return ScalingDecision(seen.role, least, 0, "nobody asks", least, numbers)
