"""What a move is expected to cost."""

from rtp_serve.kv_store.transfer_rate import TransferRate


def test_what_is_not_known_is_tried():
    assert TransferRate().is_worth(100, recompute_s=1e-9)
    rate = TransferRate()
    rate.observe(1, 1.0)
    assert rate.is_worth(100, recompute_s=0.0)


def test_a_move_is_worth_it_if_it_is_quicker():
    rate = TransferRate()
    rate.observe(10, 1.0)
    assert rate.is_worth(20, recompute_s=2.1)
    assert not rate.is_worth(20, recompute_s=1.9)


def test_later_moves_count():
    rate = TransferRate()
    rate.observe(1, 1.0)
    for _ in range(40):
        rate.observe(2, 0.2)
    assert rate.is_worth(1, recompute_s=0.11)
    assert not rate.is_worth(1, recompute_s=0.09)


def test_what_was_too_slow_is_tried_again():
    rate = TransferRate()
    rate.observe(1, 1.0)
    answers = [rate.is_worth(1, recompute_s=0.5) for _ in range(200)]
    assert answers[:63] == [False] * 63
    assert True in answers


def test_a_move_that_was_worth_it_keeps_what_is_known():
    rate = TransferRate()
    rate.observe(1, 1.0)
    for _ in range(300):
        assert not rate.is_worth(1, recompute_s=0.5)
        assert rate.is_worth(1, recompute_s=2.0)


def test_as_much_is_computed_as_takes_what_moving_the_others_does():
    rate = TransferRate()
    assert rate.num_to_compute(100, recompute_s=1.0) == 0
    rate.observe(10, 10.0)
    assert rate.num_to_compute(100, recompute_s=0.0) == 0
    assert rate.num_to_compute(100, recompute_s=1.0) == 50
    assert rate.num_to_compute(100, recompute_s=4.0) == 20


def test_nothing_is_computed_where_moving_all_is_hardly_slower():
    rate = TransferRate()
    rate.observe(10, 10.0)
    assert rate.num_to_compute(100, recompute_s=6.0) == 0
