"""What autoscaling has decided lately: the controller writes it, ingresses read it, and replicas
that can change their roles read how many of them shall.

It is one value of a few kilobytes in Ray's key-value store, where it costs no process. It goes with
the cluster.
"""

import json
from collections import deque
from collections.abc import Mapping
from typing import Any
from weakref import WeakValueDictionary

from ray.exceptions import RayError
from ray.experimental.internal_kv import _internal_kv_get, _internal_kv_put

from rtp_serve.autoscaling.types import FleetPlan, RoleSwitch, ScalingDecision

_NAMESPACE = "rtp_serve"
_MAX_CHANGES = 50
_PERIOD_S = 2.0
"""The present is written as often, changes at once."""

_FRESH_S = 60.0
"""An older record may be of an application of this name that is gone."""

SWITCHED = "is_switched"
"""1 among the figures of a replica that has the other role."""


class AutoscalingRecord:
    """The writer's side, of one application, whose deployments may be planned one by one."""

    def __init__(self, application: str) -> None:
        self._key = _key(application)
        self._present: dict[str, dict[str, Any]] = {}  # by role
        self._changes: deque[dict[str, Any]] = deque(maxlen=_MAX_CHANGES)
        self._written_s = float("-inf")

    def add(self, plan: FleetPlan, now: float, switched: Mapping[str, int] | None = None) -> None:
        """`now` is seconds since the epoch. `switched` says how many of each deployment shall have
        the other role; None if nobody follows the plan's switches."""
        changes = [_row(each, now) for each in plan.decisions if each.is_change]
        switches = [_switch_row(each, now) for each in plan.switches]
        if switched is not None:
            changes.extend(switches)
        self._changes.extend(changes)
        self._present |= {each.role.value: _row(each, now) for each in plan.decisions}
        if not changes and now - self._written_s < _PERIOD_S:
            return
        self._written_s = now
        record = {
            "time_s": now,
            "present": [each for each in self._present.values() if now - each["time_s"] < _FRESH_S],
            "switched": dict(switched or {}),
            "proposed_switches": switches if switched is None else [],
            "changes": [*self._changes],
        }
        _internal_kv_put(self._key, json.dumps(record), namespace=_NAMESPACE)


_records: WeakValueDictionary[str, AutoscalingRecord] = WeakValueDictionary()


def record_of(application: str) -> AutoscalingRecord:
    """The one that this process's policies for the application share."""
    return _records.setdefault(application, AutoscalingRecord(application))


def read_record(application: str) -> dict[str, Any]:
    """The latest; without one nothing scales by our policy. Blocks for a moment."""
    found = _internal_kv_get(_key(application), namespace=_NAMESPACE)
    return dict(json.loads(found)) if found else {"present": [], "changes": []}


def read_num_switched(application: str, deployment: str, now: float) -> int | None:
    """How many of a deployment's replicas shall have the other role; None if nobody has said
    lately, or nobody can say. `now` is seconds since the epoch. Blocks for a moment."""
    try:
        record = read_record(application)
    except RayError:
        return None
    is_fresh = now - record.get("time_s", 0.0) < _FRESH_S
    num = record.get("switched", {}).get(deployment) if is_fresh else None
    return None if num is None else int(num)


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


def _switch_row(switch: RoleSwitch, now: float) -> dict[str, Any]:
    return {
        "time_s": now,
        "from": switch.source.value,
        "to": switch.target.value,
        "num_replicas": switch.num_replicas,
        "reason": switch.reason,
    }
