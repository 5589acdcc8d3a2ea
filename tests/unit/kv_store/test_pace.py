"""How long work leaves the cores alone."""

from rtp_serve.kv_store.pace import Pace


def test_a_pause_is_eighty_times_the_work():
    times = iter([10.0, 10.002, 50.0, 50.0])
    pace = Pace(lambda: next(times))
    pace.begin()
    assert abs(pace.pause_s() - 0.16) < 1e-9
    pace.begin()
    assert pace.pause_s() == 0.0
