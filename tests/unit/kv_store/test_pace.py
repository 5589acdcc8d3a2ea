"""How long work leaves the cores alone."""

from rtp_serve.kv_store.pace import Pace


def test_a_pause_is_eighty_times_all_that_was_done_since_the_last():
    times = iter([10.0, 10.002, 10.005, 10.005])
    pace = Pace(lambda: next(times))
    assert abs(pace.pause_s() - 0.16) < 1e-9
    assert abs(pace.pause_s() - 0.24) < 1e-9
    assert pace.pause_s() == 0.0
