from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rtp_serve.autoscaling.ingress import IngressPlanner
from rtp_serve.autoscaling.types import ScalingDecision
from rtp_serve.config.autoscaling import IngressAutoscalingConfig

PERIOD_S = 0.5


class PlayedIngresses:
    """Orders are filled at once, and the work is even on all of them."""

    def __init__(self, first: int = 1, **values: object) -> None:
        config = {"max_replicas": 8, "target_utilization": 0.5, "downscale_delay_s": 10}
        self._planner = IngressPlanner(IngressAutoscalingConfig.model_validate(config | values))
        self.num_replicas = first
        self._now = 0.0

    def play(self, cores: float, seconds: float, num_silent: int = 0) -> Iterator[ScalingDecision]:
        """`cores` is what their work takes; none can use more than one."""
        for _ in range(round(seconds / PERIOD_S)):
            self._now += PERIOD_S
            num = self.num_replicas
            each = min(1.0, cores / num)
            told = {f"i{number}": each for number in range(num - num_silent)}
            decision = self._planner.plan(told, num, num, self._now)
            self.num_replicas = decision.num_replicas
            yield decision

    def settle(self, cores: float, seconds: float = 60) -> int:
        return [each.num_replicas for each in self.play(cores, seconds)][-1]


@given(st.floats(0, 6), st.integers(1, 3), st.integers(3, 6))
@settings(max_examples=30, deadline=None)
def test_as_many_as_keep_the_target_within_the_bounds(cores: float, least: int, most: int):
    played = PlayedIngresses(least, min_replicas=least, max_replicas=most)
    num = played.settle(cores)
    assert least <= num <= most
    assert num == most or cores / num <= 0.5 + 1e-9
    assert num == least or cores / (num - 1) > 0.5 - 1e-9


def test_one_that_is_full_gets_another_until_none_is():
    played = PlayedIngresses()
    rising = [each for each in played.play(1.9, 5) if each.is_change]
    assert [each.num_replicas for each in rising] == [2, 4]
    assert rising[0].reason == "utilization: 2 needed"
    assert rising[1].numbers["busiest"] == pytest.approx(0.95)


def test_they_go_one_by_one_when_fewer_were_enough_for_long():
    played = PlayedIngresses(downscale_delay_s=10, downscale_step_s=2)
    assert played.settle(1.9) == 4
    assert not any(each.is_change for each in played.play(0.1, 9))
    falling = [each for each in played.play(0.1, 30) if each.is_change]
    assert [each.num_replicas for each in falling] == [3, 2, 1]
    assert falling[0].reason == "1 were enough of late"


def test_a_short_calm_takes_none_away():
    played = PlayedIngresses(downscale_delay_s=10)
    played.settle(1.9)
    for _ in range(5):
        assert played.settle(0.1, 6) == 4
        assert played.settle(1.9, 2) == 4


def test_none_goes_while_one_has_not_told():
    """As in a controller that has just started, which knows of nothing."""
    played = PlayedIngresses(3)
    first, *later = played.play(0.3, 60, num_silent=3)
    assert {each.num_replicas for each in (first, *later)} == {3}
    assert first.reason == "silent ingresses: 3 needed, 3 of late"
    assert played.settle(0.3, 9) == 3
    assert played.settle(0.3) == 1


def test_more_may_have_to_be_wanted_for_some_time():
    played = PlayedIngresses(upscale_delay_s=3)
    assert played.settle(0.9, 2) == 1
    assert played.settle(0.1, 1) == 1
    assert played.settle(0.9, 2) == 1
    assert played.settle(0.9, 2) == 2
