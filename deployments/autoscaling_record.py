"""What autoscaling has decided lately: the controller writes it, ingresses read it.

It is one value of a few kilobytes in Ray's key-value store, where it costs no process. It goes with
the cluster.
"""

import json
from collections import deque
from typing import Any

from ray.experimental.internal_kv import _internal_kv_get, _internal_kv_put

from rtp_serve.autoscaling.types import FleetPlan, ScalingDecision

_NAMESPACE = "rtp_serve"
_MAX_CHANGES = 50
_PERIOD_S = 2.0
"""The present is written as often, changes at once."""


class AutoscalingRecord:
    """The writer's side, of one application."""

    def __init__(self, application: str) -> None:
        self._key = _key(application)
        self._changes: deque[dict[str, Any]] = deque(maxlen=_MAX_CHANGES)
        self._written_s = float("-inf")

    def add(self, plan: FleetPlan, now: float) -> None:
        """`now` is seconds since the epoch."""
        changes = [_row(each, now) for each in plan.decisions if each.is_change]
        self._changes.extend(changes)
        if not changes and now - self._written_s < _PERIOD_S:
            return
        self._written_s = now
        record = {
            "time_s": now,
            "present": [_row(each, now) for each in plan.decisions],
            "proposed_switches": [
                {
                    "from": each.source.value,
                    "to": each.target.value,
                    "num_replicas": each.num_replicas,
                    "reason": each.reason,
                }
                for each in plan.switches
            ],
            "changes": [*self._changes],
        }
        _internal_kv_put(self._key, json.dumps(record), namespace=_NAMESPACE)


def read_record(application: str) -> dict[str, Any]:
    """The latest; without one nothing scales by our policy. Blocks for a moment."""
    found = _internal_kv_get(_key(application), namespace=_NAMESPACE)
    return dict(json.loads(found)) if found else {"present": [], "changes": []}


def _key(application: str) -> str:
    return f"autoscaling.{application}"


def _row(decision: ScalingDecision, now: float) -> dict[str, Any]:
    return {
        "time_s": now,
        "role": decision.role.value,
        "num_before": decision.num_before,
        "num_replicas": decision.num_replicas,
        "reason": decision.reason,
        "numbers": {name: round(value, 6) for name, value in decision.numbers.items()},
    }
