"""Replicas of a role, out of two deployments."""

from collections import Counter
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock
from uuid import uuid4

import pytest

from deployments import live_replicas
from deployments.live_replicas import LiveReplicas
from deployments.role_pool import RolePool
from deployments.role_told import fit_for, routing_stats, told_role
from rtp_serve.routing.types import Role


class Handle:
    """As much of a DeploymentHandle as a pool asks for."""

    def __init__(self, app: str, name: str) -> None:
        self.app_name, self.deployment_name = app, name
        self.has_router = False

    def options(self) -> "Handle":
        self.has_router = True
        return self


class Stage:
    def __init__(self) -> None:
        app = f"pool-{uuid4()}"
        self.prefill: Any = Handle(app, "P")
        self.decode: Any = Handle(app, "D")
        self.of_prefill = live_replicas.of(app, "P")
        self.of_decode = live_replicas.of(app, "D")
        self.streams = RolePool(Role.DECODE, self.decode, [self.prefill])


@pytest.fixture
def stage() -> Stage:
    return Stage()


def tell(live: LiveReplicas, **roles: Role | None) -> None:
    live.tell(frozenset(roles), {name: role for name, role in roles.items() if role is not None})


def test_nobody_is_known_until_the_home_deployment_is(stage: Stage):
    assert stage.prefill.has_router
    tell(stage.of_prefill, p=Role.DECODE)
    assert stage.streams.names is None
    assert stage.streams.all_names is None


def test_who_switches_is_here_and_no_more_there(stage: Stage):
    prompts = RolePool(Role.PREFILL, stage.prefill, [stage.decode])
    tell(stage.of_prefill, p0=Role.PREFILL, p1=Role.PREFILL)
    tell(stage.of_decode, d0=Role.DECODE)
    assert (stage.streams.names, prompts.names) == ({"d0"}, {"p0", "p1"})
    tell(stage.of_prefill, p0=Role.PREFILL, p1=Role.DECODE)
    assert (stage.streams.names, prompts.names) == ({"d0", "p1"}, {"p0"})
    assert prompts.lacks("p1")
    assert not stage.streams.lacks("p1")
    assert stage.streams.all_names == {"p0", "p1", "d0"}


def test_who_has_not_said_its_role_has_its_deployment_s(stage: Stage):
    tell(stage.of_prefill, p0=None)
    tell(stage.of_decode, d0=None)
    assert stage.streams.names == {"d0"}


def test_a_replica_does_not_ask_itself(stage: Stage):
    prompts = RolePool(Role.PREFILL, stage.prefill, [stage.decode], without="d0")
    tell(stage.of_prefill, p0=Role.PREFILL)
    tell(stage.of_decode, d0=Role.PREFILL)
    assert prompts.names == {"p0"}


def test_a_change_of_role_is_told_and_the_same_again_is_not(stage: Stage):
    watcher = Mock()
    stage.streams.watch(watcher)
    tell(stage.of_prefill, p0=Role.PREFILL)
    tell(stage.of_prefill, p0=Role.DECODE)
    tell(stage.of_prefill, p0=Role.DECODE)
    assert watcher.call_count == 2
    stage.streams.unwatch(watcher)
    tell(stage.of_prefill, p0=Role.PREFILL)
    assert watcher.call_count == 2


def test_calls_go_to_the_deployment_that_has_the_replica(stage: Stage):
    tell(stage.of_decode, d0=Role.DECODE)
    tell(stage.of_prefill, p0=Role.PREFILL)
    handle = stage.streams.handle
    assert (handle("d0"), handle("p0"), handle("gone")) == (
        stage.decode,
        stage.prefill,
        stage.decode,
    )
    assert {handle() for _ in range(50)} == {stage.decode}


def test_calls_for_anybody_go_to_all_that_have_the_role(stage: Stage):
    tell(stage.of_decode, d0=Role.PREFILL)
    tell(stage.of_prefill, p0=Role.PREFILL)
    assert stage.streams.handle() is stage.decode  # where there is nobody, whoever is at home
    tell(stage.of_decode, d0=Role.DECODE)
    tell(stage.of_prefill, p0=Role.DECODE, p1=Role.DECODE, p2=Role.DECODE)
    times = Counter(stage.streams.handle() for _ in range(400))
    assert times[stage.prefill] > times[stage.decode] > 40


def test_roles_are_told_as_routing_stats():
    said = SimpleNamespace(routing_stats=routing_stats(Role.DECODE))
    assert told_role(said) is Role.DECODE
    assert told_role(SimpleNamespace(routing_stats={})) is None


def test_streams_and_prompts_go_to_who_has_the_role_and_other_calls_to_everybody():
    said = [routing_stats(Role.PREFILL), routing_stats(Role.DECODE), {}]
    prefill, decode, silent = (SimpleNamespace(routing_stats=each) for each in said)
    replicas = [prefill, decode, silent]
    assert fit_for("run", replicas) == [decode, silent]
    assert fit_for("prefill", replicas) == [prefill, silent]
    assert fit_for("cache_stats", replicas) == replicas
