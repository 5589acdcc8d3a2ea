from benchmarks.autoscaling import chosen
from benchmarks.autoscaling_plays import Knobs, Outcome


def outcomes(*values: tuple[float, float]) -> dict[Knobs, Outcome]:
    return {
        (("knob", float(i)),): Outcome(attainment, attainment, hours, 1)
        for i, (attainment, hours) in enumerate(values)
    }


def test_the_cheapest_that_reaches_the_goal_is_chosen():
    assert chosen(outcomes((0.99, 9.0), (0.96, 7.0), (0.94, 5.0)), 0.95) == (("knob", 1.0),)


def test_without_one_the_nearest_is():
    assert chosen(outcomes((0.9, 9.0), (0.8, 7.0)), 0.95) == (("knob", 0.0),)
