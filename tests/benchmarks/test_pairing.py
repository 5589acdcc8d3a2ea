from collections.abc import Iterator

import pytest

from benchmarks.pairing import Block, PairedRun, alternate
from rtp_serve.clock import VirtualClock


def test_probes_stand_around_each_block_and_cost_the_steps_nothing():
    clock = VirtualClock()
    rates = iter([10.0, 20.0, 40.0, 80.0])

    def probe() -> float:
        clock.advance(100.0)
        return next(rates)

    def steps() -> Iterator[int]:
        for seconds in (1, 2, 3, 4, 5):
            clock.advance(seconds)
            yield seconds

    run = alternate(steps(), probe, 2, clock.monotonic)
    assert run.blocks == (Block(2, 3.0, 15.0), Block(2, 7.0, 30.0), Block(1, 5.0, 60.0))
    assert run.seconds == 15.0
    assert run.step_s == 3.0


def test_steps_that_slow_down_with_the_machine_keep_their_fraction():
    # The second block ran when the machine was half as fast.
    run = PairedRun((Block(4, 1.0, 100.0), Block(4, 2.0, 50.0), Block(4, 1.0, 100.0)))
    assert run.fraction(units_per_step=20.0) == pytest.approx(0.8)
    assert run.ceiling == pytest.approx((100 + 2 * 50 + 100) / 4)


def test_one_disturbed_block_does_not_change_the_fraction():
    run = PairedRun((Block(1, 1.0, 10.0), Block(1, 9.0, 10.0), Block(1, 1.0, 10.0)))
    assert run.fraction(units_per_step=9.0) == pytest.approx(0.9)
