"""How many ingresses: as many as have cores enough for what all of them do.

An ingress is one Python process, so what it can do ends at one core. Its CPU time is what the work
takes and does not depend on how many share it, unlike how long its event loop lags: that also rises
where others on the node want the cores, and another ingress there brings no core.
"""

from collections.abc import Mapping
from math import ceil

from rtp_serve.autoscaling.steps import Steps, step_reason
from rtp_serve.autoscaling.types import ScalingDecision
from rtp_serve.config.autoscaling import IngressAutoscalingConfig
from rtp_serve.routing.types import Role

CPU_S = "cpu_s"
"""Name of the figure that an ingress reports: CPU seconds of its process since its start."""


class IngressPlanner:
    """Is asked every period."""

    def __init__(self, config: IngressAutoscalingConfig) -> None:
        self._config = config
        self._steps = Steps(config, config.downscale_delay_s)

    def plan(
        self, utilizations: Mapping[str, float], num_running: int, num_target: int, now: float
    ) -> ScalingDecision:
        """The number of ingresses from now on. `utilizations` are CPU seconds a second of late, by
        ingress, of those of the `num_running` that have told; `num_target` are ordered, with those
        that start and without those that go."""
        config = self._config
        cores = sum(utilizations.values())
        num_silent = num_running - len(utilizations)
        needs = {
            "utilization": ceil(cores / config.target_utilization),
            # What those do is not known, so none goes.
            "silent ingresses": num_target if num_silent else 0,
        }
        cause = max(needs, key=lambda name: needs[name])
        need = max(config.min_replicas, min(config.max_replicas, needs[cause]))
        held = self._steps.held(need, now)
        target = self._steps.next(need, held, num_target, now)
        numbers = {
            "cores": cores,
            "busiest": max(utilizations.values(), default=0.0),
            "num_silent": num_silent,
        } | {f"needed for {name}": num for name, num in needs.items()}
        reason = step_reason(target, num_target, cause, need, held)
        return ScalingDecision(Role.INGRESS, target, num_target, reason, held, numbers)
