"""What the controller's policy decides of roles, and what replicas read of it."""

import asyncio
import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any

import pytest

from deployments import autoscaling_record
from deployments.autoscaling import ApplicationPolicy, DeploymentPolicy, autoscaling_options
from deployments.autoscaling_record import SWITCHED, read_num_switched, read_record
from deployments.replica_role import ReplicaRole, RoleOptions
from rtp_serve.autoscaling.ingress import CPU_S
from rtp_serve.autoscaling.load import ReplicaLoad
from rtp_serve.config.autoscaling import AutoscalingConfig, IngressAutoscalingConfig
from rtp_serve.config.disaggregation import DECODE_REPLICA, PREFILL_REPLICA
from rtp_serve.config.serving import INGRESS
from rtp_serve.routing.types import Role
from tests.unit.autoscaling.played_roles import served

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
    name: str,
    now: float,
    loads: Mapping[str, ReplicaLoad],
    switched: Collection[str] = (),
    *,
    switching: bool,
    config: AutoscalingConfig = CONFIG,
) -> Any:
    """As much of Serve's as the policy reads: as many replicas run as are wanted."""
    metrics: dict[str, dict[Any, list[Any]]] = {}
    for replica, load in loads.items():
        figures = load.floats() | {SWITCHED: float(replica in switched)}
        replica_id = _ReplicaId(replica)
        for figure, value in figures.items():
            metrics.setdefault(figure, {})[replica_id] = [SimpleNamespace(value=value)]
    policy = autoscaling_options(config, switching)["policy"]
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
    switched: Collection[str] = (),
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
    targets, _ = policy(fleet(START_S + 3, p1=half, d0=half, switched={"p1"}))
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
        targets, _ = policy(fleet(START_S + second, d0=IDLE, switched={"p1"}))
        if targets != {"P": 2, "D": 1}:
            break
    assert targets == {"P": 1, "D": 1}
    assert read_num_switched(APP, PREFILL_REPLICA, START_S + second) == 0


def test_a_controller_that_starts_again_goes_on_with_what_is_lent():
    ApplicationPolicy()(fleet(START_S))
    half = ReplicaLoad(num_decoding=4, context_tokens=15_000, kv_capacity_tokens=20_000)
    again = ApplicationPolicy()
    targets, _ = again(fleet(START_S + 10, p1=half, d0=half, switched={"p1"}))
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


# -- with ingresses --

INGRESSES = IngressAutoscalingConfig(max_replicas=3, target_utilization=0.5)


def ingresses(now: float, *utilizations: float, span_s: float = 5.0) -> Any:
    """As much of Serve's as the policy reads, of ingresses that have used so much of a core for
    `span_s`."""
    series = {
        _ReplicaId(f"i{number}"): [
            SimpleNamespace(timestamp=now - span_s, value=70.0),
            SimpleNamespace(timestamp=now, value=70.0 + span_s * utilization),
        ]
        for number, utilization in enumerate(utilizations)
    }
    policy = autoscaling_options(INGRESSES)["policy"]
    return SimpleNamespace(
        deployment_name=INGRESS,
        app_name=APP,
        current_time=now,
        current_num_replicas=len(series),
        target_num_replicas=len(series),
        raw_metrics={CPU_S: series},
        config=SimpleNamespace(
            look_back_period_s=INGRESSES.look_back_period_s,
            policy=SimpleNamespace(policy_kwargs=policy["policy_kwargs"]),
        ),
    )


def test_ingresses_are_planned_beside_roles_that_switch():
    targets, _ = ApplicationPolicy()(fleet(START_S) | {"I": ingresses(START_S, 0.4, 0.9)})
    assert targets == {"P": 2, "D": 1, "I": 3}
    assert read_num_switched(APP, PREFILL_REPLICA, START_S + 1) == 1
    change, *_ = read_record(APP)["changes"]
    assert (change["role"], change["num_before"], change["num_replicas"]) == ("ingress", 2, 3)
    assert change["reason"] == "utilization: 3 needed"
    assert change["numbers"]["cores"] == pytest.approx(1.3)


def test_what_an_ingress_did_for_a_moment_says_nothing():
    targets, _ = ApplicationPolicy()({"I": ingresses(START_S, 1.0, span_s=1.0)})
    assert targets == {"I": 1}
    assert read_record(APP)["present"][0]["numbers"]["num_silent"] == 1


def test_deployments_that_are_planned_one_by_one_share_a_record():
    replicas = DeploymentPolicy(**_kwargs(fleet(START_S, switching=False)["D"]))
    front = DeploymentPolicy(**_kwargs(ingresses(START_S)))
    for second in range(5):
        now = START_S + second
        assert replicas(fleet(now, d0=IDLE, switching=False)["D"]) == (1, {})
        assert front(ingresses(now, 0.2)) == (1, {})
    assert {each["role"] for each in read_record(APP)["present"]} == {"decode", "ingress"}


def _kwargs(context: Any) -> dict[str, Any]:
    return dict(context.config.policy.policy_kwargs)


# -- the whole loop: policy, record, replicas that read it, loads that follow their roles --

PERIOD_S = 1.0
NAMES = {Role.PREFILL: PREFILL_REPLICA, Role.DECODE: DECODE_REPLICA}
PROMPT_TOKENS = 1000.0
TOKENS_PER_S = 4000.0
"""Of a prefill replica."""


@dataclass
class Demand:
    """On all replicas of a role together."""

    prompts_per_s: float = 0.0
    context_tokens: float = 0.0
    """Of sequences that decode; a replica holds 20,000."""


class Fleet:
    """Replicas that start and stop at once, and find out themselves which role they have."""

    def __init__(self, num_prefill: int, num_decode: int, **bounds: int) -> None:
        values = {"min_replicas": 1, "max_replicas": 4, "downscale_delay_s": 5.0, **bounds}
        self.config = AutoscalingConfig.model_validate(
            {
                **values,
                "tokens_per_s": TOKENS_PER_S,
                "targets": {"ttft": [{"ttft_s": 1.0}], "itl_s": 0.1},
            }
        )
        self.policy = ApplicationPolicy()
        self.now = START_S
        self.num_started = 0
        self.replicas: dict[Role, list[Replica]] = {role: [] for role in NAMES}
        self._scale({Role.PREFILL: num_prefill, Role.DECODE: num_decode})

    def num_switched(self) -> tuple[int | None, ...]:
        """Of the prefill and of the decode deployment, as their replicas read it."""
        return tuple(read_num_switched(APP, name, self.now) for name in NAMES.values())

    def shape(self) -> tuple[int, int]:
        """Replicas of either deployment."""
        return len(self.replicas[Role.PREFILL]), len(self.replicas[Role.DECODE])

    def in_role(self, role: Role) -> list["Replica"]:
        every = [each for replicas in self.replicas.values() for each in replicas]
        return [each for each in every if each.role.current is role]

    def play(self, demand: Demand, seconds: float) -> None:
        for _ in range(round(seconds / PERIOD_S)):
            self.now += PERIOD_S
            self._work(demand)
            targets, _ = self.policy(
                {role: self._context(role) for role in NAMES if self.replicas[role]}
            )
            self._scale(targets)
            asyncio.run(self._follow())
            assert self.in_role(Role.PREFILL)
            assert self.in_role(Role.DECODE)

    def _work(self, demand: Demand) -> None:
        prefill, decode = self.in_role(Role.PREFILL), self.in_role(Role.DECODE)
        for each in prefill:
            each.compute(demand.prompts_per_s * PERIOD_S / len(prefill))
        for each in decode:
            each.hold(demand.context_tokens / len(decode))

    def _context(self, role: Role) -> Any:
        replicas = self.replicas[role]
        loads = {each.name: each.load for each in replicas}
        switched = {each.name for each in replicas if each.role.is_switched}
        return context(NAMES[role], self.now, loads, switched, switching=True, config=self.config)

    def _scale(self, targets: Mapping[Role, int]) -> None:
        for role, num in targets.items():
            replicas = self.replicas[role]
            while len(replicas) < num:
                self.num_started += 1
                replicas.append(Replica(f"{role.value}{self.num_started}", role, self))
            del replicas[num:]
            for rank, each in enumerate(replicas):
                each.role.configure(0, rank)

    async def _follow(self) -> None:
        for replicas in self.replicas.values():
            for each in replicas:
                await each.role._follow_once()


class Replica:
    """Counts begin anew with a role, as a real one's do."""

    def __init__(self, name: str, home: Role, fleet: Fleet) -> None:
        self.name = name
        self.load = IDLE_ONE
        self.role = ReplicaRole(
            RoleOptions(home, can_switch=True, is_autoscaled=True),
            name,
            lambda: read_num_switched(APP, NAMES[home], fleet.now),
            self._changed,
        )

    def _changed(self) -> None:
        self.load = IDLE_ONE

    def compute(self, num_prompts: float) -> None:
        """Prompts, each in time."""
        idle = replace(self.load, num_decoding=0, context_tokens=0)
        self.load = served(idle, num_prompts, PROMPT_TOKENS, PROMPT_TOKENS / TOKENS_PER_S)

    def hold(self, num_tokens: float) -> None:
        self.load = replace(IDLE_ONE, num_decoding=num_tokens / 3000, context_tokens=num_tokens)


IDLE_ONE = ReplicaLoad(num_arrivals=(0.0,), arrived_tokens=(0.0,), kv_capacity_tokens=20_000)
LONG_ANSWERS = Demand(prompts_per_s=0.5, context_tokens=26_000)
LONG_PROMPTS = Demand(prompts_per_s=6.0, context_tokens=2_000)
QUIET = Demand(prompts_per_s=0.1, context_tokens=500)


def test_replicas_follow_what_is_proposed_and_return_when_the_load_is_gone():
    fleet = Fleet(2, 1)
    fleet.play(LONG_ANSWERS, 3)
    assert fleet.num_switched() == (1, 0)
    assert [len(fleet.in_role(role)) for role in NAMES] == [1, 2]
    fleet.play(LONG_ANSWERS, 120)  # and nothing more happens
    assert (fleet.shape(), fleet.num_switched(), fleet.num_started) == ((2, 1), (1, 0), 3)
    fleet.play(QUIET, 60)
    assert (fleet.shape(), fleet.num_switched(), fleet.num_started) == ((1, 1), (0, 0), 3)


def test_a_decode_replica_that_was_to_go_computes_prompts_while_there_are_many():
    fleet = Fleet(1, 3, downscale_step_s=20)
    fleet.play(QUIET, 2)
    assert (fleet.shape(), fleet.num_switched()) == ((1, 2), (0, 0))
    fleet.play(Demand(4.0, 2_000), 120)
    assert (fleet.shape(), fleet.num_switched(), fleet.num_started) == ((1, 2), (0, 1), 4)
    assert [len(fleet.in_role(role)) for role in NAMES] == [2, 1]
    fleet.play(QUIET, 300)
    assert (fleet.shape(), fleet.num_switched(), fleet.num_started) == ((1, 1), (0, 0), 4)


@pytest.mark.parametrize("least", [0, 1])
def test_a_replica_is_lent_no_longer_than_the_load_that_asked_for_it(least: int):
    """The decode deployment's own are enough again, and they stay."""
    fleet = Fleet(2, 2, min_replicas=least)
    fleet.play(Demand(0.5, 44_000), 3)
    assert (fleet.shape(), fleet.num_switched()) == ((2, 2), (1, 0))
    own = fleet.replicas[Role.DECODE][:]
    fleet.play(LONG_ANSWERS, 60)
    assert (fleet.shape(), fleet.num_switched()) == ((1, 2), (0, 0))
    assert fleet.replicas[Role.DECODE] == own


def test_loads_that_alternate_are_followed_and_leave_nothing_lent():
    fleet = Fleet(2, 2, max_replicas=3)
    for _ in range(3):
        fleet.play(LONG_PROMPTS, 40)
        assert len(fleet.in_role(Role.PREFILL)) >= 2
        fleet.play(Demand(0.5, 44_000), 40)
        assert len(fleet.in_role(Role.DECODE)) >= 3
    fleet.play(QUIET, 300)
    assert (fleet.shape(), fleet.num_switched()) == ((1, 1), (0, 0))
