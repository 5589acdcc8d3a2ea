"""Which processes are started ahead, and when. That replicas take them is in test_autoscaling."""

from deployments.args import replica_options
from deployments.engine_imports import LIFE_S
from deployments.warm_processes import WarmCount
from rtp_serve.config.serving import AppConfig

CALM_S = 5.0


def runtime_env(num_warm: int) -> dict[str, object] | None:
    scaling = {"max_replicas": 3, "warm_processes": num_warm}
    config = AppConfig.model_validate({"replica": {"autoscaling": scaling}})
    return replica_options(config)["ray_actor_options"].get("runtime_env")


def test_only_replicas_with_warm_processes_have_an_environment_of_their_own():
    assert runtime_env(0) is None
    env = runtime_env(1)
    assert env is not None
    assert "deployments.engine_imports.import_engine" in env["env_vars"].values()


def test_they_start_when_nothing_has_changed_for_a_while():
    count = WarmCount()
    assert count.missing(2, 1, 0.0, CALM_S) == 0
    assert count.missing(2, 1, 4.9, CALM_S) == 0
    assert count.missing(2, 1, 5.0, CALM_S) == 2
    assert count.missing(2, 1, 6.0, CALM_S) == 0


def test_those_that_replicas_took_are_made_up_for_later():
    count = WarmCount()
    count.missing(2, 1, 0.0, CALM_S)
    count.missing(2, 1, 5.0, CALM_S)
    assert count.missing(2, 2, 10.0, CALM_S) == 0
    assert count.missing(2, 2, 15.0, CALM_S) == 1
    assert count.missing(2, 9, 20.0, CALM_S) == 0  # more than there were
    assert count.missing(2, 9, 25.0, CALM_S) == 2


def test_a_replica_that_goes_leaves_no_process():
    count = WarmCount()
    count.missing(1, 3, 0.0, CALM_S)
    count.missing(1, 3, 5.0, CALM_S)
    assert count.missing(1, 2, 10.0, CALM_S) == 0
    assert count.missing(1, 2, 15.0, CALM_S) == 0


def test_no_more_than_replicas_could_take():
    count = WarmCount()
    count.missing(2, 1, 0.0, CALM_S)
    count.missing(2, 1, 5.0, CALM_S)
    assert count.missing(0, 3, 10.0, CALM_S) == 0
    assert count.missing(2, 1, 20.0, CALM_S) == 0
    assert count.missing(2, 1, 25.0, CALM_S) == 2


def test_those_that_nobody_took_end_and_are_replaced():
    count = WarmCount()
    count.missing(1, 1, 0.0, CALM_S)
    count.missing(1, 1, 5.0, CALM_S)
    assert count.missing(1, 1, 5.0 + LIFE_S, CALM_S) == 0
    assert count.missing(1, 1, 6.0 + LIFE_S, CALM_S) == 1
