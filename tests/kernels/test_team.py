"""Threads that compute together: each caller has its own, and every call has all of them."""

import os
import threading

import pytest
import torch

import rtp_kernels
from rtp_serve import ops
from tests.kernels.levels import bits, random, using


@pytest.mark.parametrize("count", [0, -1, 513])
def test_a_number_of_threads_out_of_range_is_refused(count: int):
    with pytest.raises(ValueError, match=f"num_threads must be from 1 to 512, got {count}"):
        rtp_kernels.set_num_threads(count)


def test_the_number_belongs_to_the_thread_that_sets_it():
    seen: list[int] = []

    def ask() -> None:
        seen.append(rtp_kernels.num_threads())
        rtp_kernels.set_num_threads(3)
        seen.append(rtp_kernels.num_threads())

    with using(rtp_kernels.isa(), num_threads=2):
        thread = threading.Thread(target=ask)
        thread.start()
        thread.join()
        assert rtp_kernels.num_threads() == 2
    assert seen == [1, 3]


def test_callers_do_not_disturb_each_other():
    """More members than cores, several callers at once, sizes that change between calls."""
    weight = ops.pack_weight(random(600, 300, dtype=torch.bfloat16))
    x = random(40, 300, dtype=torch.bfloat16, seed=1)
    with using(rtp_kernels.isa(), num_threads=1):
        expected = bits(ops.linear(x, weight))
    wrong: list[int] = []

    def multiply(count: int) -> None:
        for size in (count, 2, count):
            rtp_kernels.set_num_threads(size)
            for _ in range(30):
                if not torch.equal(bits(ops.linear(x, weight)), expected):
                    wrong.append(count)

    threads = [threading.Thread(target=multiply, args=(count,)) for count in (2, 3, 5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_a_caller_may_run_where_it_could_before():
    """During a call it stays on one core; what it starts later must not inherit that."""
    weight = ops.pack_weight(random(600, 300))
    cores = os.sched_getaffinity(0)
    for count in (len(cores), len(cores) + 1):
        with using(rtp_kernels.isa(), num_threads=count):
            ops.linear(random(40, 300), weight)
        assert os.sched_getaffinity(0) == cores


def test_a_caller_confined_to_one_core_stays_there():
    weight, x = ops.pack_weight(random(600, 300)), random(40, 300)
    expected = bits(ops.linear(x, weight))
    cores = os.sched_getaffinity(0)
    try:
        for is_new in (True, False):
            with using(rtp_kernels.isa(), num_threads=2):
                if not is_new:  # the team is older than the confinement
                    ops.linear(x, weight)
                os.sched_setaffinity(0, {min(cores)})
                assert torch.equal(bits(ops.linear(x, weight)), expected)
            assert os.sched_getaffinity(0) == {min(cores)}
            os.sched_setaffinity(0, cores)
    finally:
        os.sched_setaffinity(0, cores)
