"""What Serve's controller knows of a deployment, as the planner wants it."""

from ray.serve.config import AutoscalingContext

from deployments.autoscaling_record import SWITCHED
from rtp_serve.autoscaling.ingress import CPU_S
from rtp_serve.autoscaling.load import ReplicaLoad
from rtp_serve.autoscaling.types import Observation
from rtp_serve.config.disaggregation import DECODE_REPLICA, PREFILL_REPLICA
from rtp_serve.config.serving import INGRESS
from rtp_serve.routing.types import Role

_ROLES = {PREFILL_REPLICA: Role.PREFILL, DECODE_REPLICA: Role.DECODE, INGRESS: Role.INGRESS}


def role_of(deployment: str) -> Role:
    return _ROLES.get(deployment, Role.MIXED)


def observation(context: AutoscalingContext, role: Role) -> Observation:
    """What Serve knows of a deployment: the latest figures, not their mean over the look-back."""
    loads = {}
    for replica_name, values in _latest(context).items():
        try:
            loads[replica_name] = ReplicaLoad.from_floats(values)
        except KeyError:  # it has not recorded yet
            continue
    unrouted = 0.0 if context.current_num_replicas else context.total_num_requests
    return Observation(
        role, loads, context.current_num_replicas, context.target_num_replicas, unrouted
    )


def utilizations(context: AutoscalingContext) -> dict[str, float]:
    """CPU seconds a second over the look-back, of each ingress that has told for half of it: a
    shorter time says little."""
    assert context.config is not None
    least_s = context.config.look_back_period_s / 2
    found = {}
    for replica, series in (context.raw_metrics or {}).get(CPU_S, {}).items():
        span_s = series[-1].timestamp - series[0].timestamp if series else 0.0
        if span_s >= least_s:
            found[replica.unique_id] = (series[-1].value - series[0].value) / span_s
    return found


def switched_replicas(context: AutoscalingContext) -> frozenset[str]:
    """Of those that have reported, the ones that say they have the other role."""
    return frozenset(name for name, values in _latest(context).items() if values.get(SWITCHED))


def _latest(context: AutoscalingContext) -> dict[str, dict[str, float]]:
    """Figures by name, of each replica."""
    latest: dict[str, dict[str, float]] = {}
    for name, by_replica in (context.raw_metrics or {}).items():
        for replica, series in by_replica.items():
            if series:
                latest.setdefault(replica.unique_id, {})[name] = series[-1].value
    return latest
