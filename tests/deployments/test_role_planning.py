"""What the controller's policy decides of roles, and what replicas read of it."""

import json
from types import SimpleNamespace
from typing import Any

import pytest

from deployments import autoscaling_record
from deployments.autoscaling import ApplicationPolicy, autoscaling_options
from deployments.autoscaling_record import SWITCHED, read_num_switched, read_record
from rtp_serve.autoscaling.load import ReplicaLoad
from rtp_serve.config.autoscaling import AutoscalingConfig
from rtp_serve.config.disaggregation import DECODE_REPLICA, PREFILL_REPLICA

APP = "planned"
START_S = 1000.0
CONFIG = AutoscalingConfig(min_replicas=1, max_replicas=4, downscale_delay_s=5)
IDLE = ReplicaLoad(num_arrivals=(0.0,) * 3, arrived_tokens=(0.0,) * 3, kv_capacity_tokens=20_000)
FULL = ReplicaLoad(
    num_decoding=9,
    context_tokens=30_000,
    kv_capacity_tokens=20_000,
    num_arrivals=(9.0, 0.0, 0.0),
    arrived_tokens=(9000.0, 0.0, 0.0),
)


@pytest.fixture(autouse=True)
def kept(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """Ray's key-value store."""
    values: dict[str, str] = {}
    monkeypatch.setattr(
        autoscaling_record,
        "_internal_kv_put",
        lambda key, value, namespace: values.__setitem__(key, value),
    )
    monkeypatch.setattr(
        autoscaling_record, "_internal_kv_get", lambda key, namespace: values.get(key)
    )
    return values


def context(
    name: str, now: float, loads: dict[str, ReplicaLoad], switched: str = "", *, switching: bool
) -> Any:
    """As much of Serve's as the policy reads: as many replicas run as are wanted."""
    metrics: dict[str, dict[Any, list[Any]]] = {}
    for replica, load in loads.items():
        figures = load.floats() | {SWITCHED: float(replica == switched)}
        replica_id = _ReplicaId(replica)
        for figure, value in figures.items():
            metrics.setdefault(figure, {})[replica_id] = [SimpleNamespace(value=value)]
    policy = autoscaling_options(CONFIG, switching)["policy"]
    return SimpleNamespace(
        deployment_name=name,
        app_name=APP,
        current_time=now,
        current_num_replicas=len(loads),
        target_num_replicas=len(loads),
        total_num_requests=0.0,
        raw_metrics=metrics,
        config=SimpleNamespace(policy=SimpleNamespace(policy_kwargs=policy["policy_kwargs"])),
    )


class _ReplicaId(SimpleNamespace):
    def __init__(self, name: str) -> None:
        super().__init__(unique_id=name)

    def __hash__(self) -> int:
        return hash(self.unique_id)


def fleet(
    now: float,
    p1: ReplicaLoad = IDLE,
    d0: ReplicaLoad = FULL,
    switched: str = "",
    *,
    switching: bool = True,
) -> dict[str, Any]:
    """Two prefill replicas and a decode replica."""
    prefill = {"p0": IDLE, "p1": p1}
    return {
        "P": context(PREFILL_REPLICA, now, prefill, switched, switching=switching),
        "D": context(DECODE_REPLICA, now, {"d0": d0}, switching=switching),
    }


def test_a_spare_prefill_replica_becomes_a_decode_replica_before_one_starts():
    policy = ApplicationPolicy()
    targets, _ = policy(fleet(START_S))
    assert targets == {"P": 2, "D": 1}
    assert read_num_switched(APP, PREFILL_REPLICA, START_S + 1) == 1
    assert read_num_switched(APP, DECODE_REPLICA, START_S + 1) == 0
    (change,) = read_record(APP)["changes"]
    assert (change["from"], change["to"], change["num_replicas"]) == ("prefill", "decode", 1)
    assert change["reason"] == "prefill has had 1 to spare of late, decode lacks 1"


def test_one_that_switched_is_planned_for_in_its_new_role():
    policy = ApplicationPolicy()
    policy(fleet(START_S))
    half = ReplicaLoad(num_decoding=4, context_tokens=15_000, kv_capacity_tokens=20_000)
    targets, _ = policy(fleet(START_S + 3, p1=half, d0=half, switched="p1"))
    assert targets == {"P": 2, "D": 1}
    present = {each["role"]: each for each in read_record(APP)["present"]}
    assert {role: each["num_replicas"] for role, each in present.items()} == {
        "prefill": 1,
        "decode": 2,
    }


def test_when_fewer_decode_replicas_are_needed_one_goes_and_nobody_is_lent():
    policy = ApplicationPolicy()
    policy(fleet(START_S))
    for second in range(1, 12):
        targets, _ = policy(fleet(START_S + second, d0=IDLE, switched="p1"))
        if targets != {"P": 2, "D": 1}:
            break
    assert targets == {"P": 1, "D": 1}
    assert read_num_switched(APP, PREFILL_REPLICA, START_S + second) == 0


def test_a_controller_that_starts_again_goes_on_with_what_is_lent():
    ApplicationPolicy()(fleet(START_S))
    half = ReplicaLoad(num_decoding=4, context_tokens=15_000, kv_capacity_tokens=20_000)
    again = ApplicationPolicy()
    targets, _ = again(fleet(START_S + 10, p1=half, d0=half, switched="p1"))
    assert targets == {"P": 2, "D": 1}
    assert read_num_switched(APP, PREFILL_REPLICA, START_S + 10) == 1


def test_where_replicas_cannot_switch_it_is_proposed_and_replicas_start():
    targets, _ = ApplicationPolicy()(fleet(START_S, switching=False))
    assert targets["D"] == 2
    record = read_record(APP)
    assert [each["to"] for each in record["proposed_switches"]] == ["decode"]
    assert read_num_switched(APP, PREFILL_REPLICA, START_S) is None


def test_an_old_word_is_none(kept: dict[str, str]):
    ApplicationPolicy()(fleet(START_S))
    assert json.loads(kept[f"autoscaling.{APP}"])["switched"] == {
        PREFILL_REPLICA: 1,
        DECODE_REPLICA: 0,
    }
    assert read_num_switched(APP, PREFILL_REPLICA, START_S + 61) is None
    assert read_num_switched("another", PREFILL_REPLICA, START_S) is None
