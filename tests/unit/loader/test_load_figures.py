import pytest

from rtp_serve.clock import VirtualClock
from rtp_serve.loader.load_figures import LoadFigures, LoadTimer


def test_times_are_the_clocks_and_not_the_threads():
    clock = VirtualClock()
    timer = LoadTimer(clock)
    clock.advance(1)
    with timer.reading(), timer.reading():
        clock.advance(2)
        with timer.transforming():
            clock.advance(4)
    with timer.transforming(), timer.transforming():
        clock.advance(8)
    timer.count(30)
    timer.count(15)
    figures = timer.figures()
    assert figures == LoadFigures(
        num_bytes=45, num_reads=2, seconds=15, read_s=6, transform_s=12, overlap_s=4
    )
    assert figures.overlap_ratio == pytest.approx(4 / 6)
    assert figures.bytes_per_s == 3


def test_a_read_that_fails_is_over():
    clock = VirtualClock()
    timer = LoadTimer(clock)
    with pytest.raises(OSError, match="gone"), timer.reading():
        raise OSError("gone")
    clock.advance(1)
    assert timer.figures().read_s == 0


def test_figures_are_one_line():
    figures = LoadFigures(2_000_000_000, 250, 1.25, 1.2, 0.5, 0.4)
    assert str(figures) == (
        "2.00 GB in 1.25 s (1.60 GB/s), 250 reads: read 1.20 s, transform 0.50 s, overlap 80%"
    )
    assert figures.shares == "read 96%, transform 40%"


def test_no_time_is_no_rate():
    figures = LoadTimer(VirtualClock()).figures()
    assert (figures.bytes_per_s, figures.overlap_ratio) == (0, 0)
    assert figures.shares == "read 0%, transform 0%"
