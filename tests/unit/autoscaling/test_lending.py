"""Replicas lent between deployments: what roles want, in deployments' numbers."""

from itertools import product

import pytest

from rtp_serve.autoscaling.lending import (
    Deployed,
    deployed_for,
    observed_by_role,
    still_lent,
)
from rtp_serve.autoscaling.load import ReplicaLoad
from rtp_serve.autoscaling.types import Observation, ScalingDecision
from rtp_serve.config.autoscaling import AutoscalingConfig
from rtp_serve.routing.types import Role

P, D = Role.PREFILL, Role.DECODE


def bounds(least: int = 1, most: int = 4) -> dict[Role, AutoscalingConfig]:
    config = AutoscalingConfig(min_replicas=least, max_replicas=most)
    return {P: config, D: config}


@pytest.mark.parametrize(
    ("wanted", "lent", "expected"),
    [
        ((1, 2), 1, ((2, 1), 1)),  # one was lent, and none started
        ((2, 2), 1, ((3, 1), 1)),
        ((2, 1), -1, ((1, 2), -1)),
        ((1, 1), 1, ((1, 1), 0)),  # fewer decode replicas: the one that was lent comes back
        ((4, 2), 1, ((4, 2), 0)),  # more of the prefill deployment than there may be
    ],
)
def test_roles_get_what_they_want(
    wanted: tuple[int, int], lent: int, expected: tuple[tuple[int, int], int]
):
    deployed = deployed_for(dict(zip((P, D), wanted, strict=True)), lent, bounds())
    assert (tuple(deployed.num_replicas.values()), deployed.lent) == expected


@pytest.mark.parametrize(
    ("lent", "prefill", "decode", "expected"),
    [
        (1, (1, 1), (3, 2), 0),  # though two of three decode replicas would do with one lent
        (2, (1, 1), (4, 3), 1),
        (1, (2, 1), (3, 4), 1),
        (-1, (3, 1), (2, 2), 0),
        (-2, (2, 2), (2, 1), -2),
        (0, (2, 1), (2, 1), 0),
    ],
)
def test_who_is_lent_goes_home_when_its_role_needs_fewer(
    lent: int, prefill: tuple[int, int], decode: tuple[int, int], expected: int
):
    decisions = [
        ScalingDecision(role, after, before, "", after, {})
        for role, (before, after) in ((P, prefill), (D, decode))
    ]
    assert still_lent(lent, decisions) == expected


def test_every_deployment_keeps_its_bounds_and_a_replica_of_its_role():
    for least, prefill, decode, lent in product((0, 1), range(5), range(5), range(-5, 6)):
        if min(prefill, decode) < least:
            continue
        deployed = deployed_for({P: prefill, D: decode}, lent, bounds(least))
        assert (deployed.num_in_role(P), deployed.num_in_role(D)) == (prefill, decode)
        for role, num in deployed.num_replicas.items():
            assert least <= num <= 4
            num_switched = deployed.num_switched[role]
            assert num_switched == 0 or num_switched < num


def test_bounds_that_have_changed_lend_nothing():
    deployed = deployed_for({P: 4, D: 4}, 1, bounds(most=2))
    assert deployed.lent == 0


def test_a_replica_counts_in_the_role_that_it_says_it_has():
    loads = {name: ReplicaLoad(num_decoding=i) for i, name in enumerate("abc")}
    deployments = {
        P: Observation(P, {"a": loads["a"], "b": loads["b"]}, 2, 2),
        D: Observation(D, {"c": loads["c"]}, 1, 1, num_unrouted=3.0),
    }
    prefill, decode = observed_by_role(deployments, {P: frozenset("b"), D: frozenset()}, lent=1)
    assert (prefill.role, {*prefill.loads}) == (P, {"a"})
    assert (prefill.num_running, prefill.num_target) == (1, 1)
    assert (decode.role, {*decode.loads}) == (D, {"b", "c"})
    assert (decode.num_running, decode.num_target, decode.num_unrouted) == (2, 2, 3.0)


def test_one_that_has_not_switched_yet_is_running_in_its_old_role():
    deployments = {P: Observation(P, {}, 2, 2), D: Observation(D, {}, 1, 1)}
    nobody: dict[Role, frozenset[str]] = {P: frozenset(), D: frozenset()}
    prefill, decode = observed_by_role(deployments, nobody, lent=1)
    assert (prefill.num_running, prefill.num_target) == (2, 1)
    assert (decode.num_running, decode.num_target) == (1, 2)


def test_lent_replicas_are_those_of_one_deployment():
    assert Deployed({}, 2).num_switched == {P: 2, D: 0}
    assert Deployed({}, -1).num_switched == {P: 0, D: 1}
