"""How many compute threads there are."""

import os
from pathlib import Path

import pytest
import torch

from rtp_serve.worker.threads import (
    available_cores,
    cpu_quota,
    kept_to,
    own_cores,
    use_compute_threads,
)


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, None),
        ({"cpu.max": "max 100000\n"}, None),
        ({"cpu.max": "150000 100000\n"}, 1.5),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, None),
        ({"cpu/cpu.cfs_quota_us": "50000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 0.5),
    ],
)
def test_the_containers_cpu_quota_is_read(
    tmp_path: Path, files: dict[str, str], expected: float | None
):
    (tmp_path / "cpu").mkdir()
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    assert cpu_quota(tmp_path) == expected
    cores = len(os.sched_getaffinity(0))
    assert available_cores(tmp_path) == (cores if expected is None else min(cores, 1))


def test_the_calling_thread_gets_the_available_cores_up_to_a_limit():
    before = torch.get_num_threads()
    try:
        assert use_compute_threads() == torch.get_num_threads() == available_cores()
        assert use_compute_threads(1) == torch.get_num_threads() == 1
        assert use_compute_threads(1000) == available_cores()
    finally:
        torch.set_num_threads(before)


def test_a_rank_keeps_to_its_cores_for_a_step_alone():
    before = os.sched_getaffinity(0)
    core = min(before)
    with kept_to([core]):
        assert os.sched_getaffinity(0) == {core}
    with kept_to(()):
        assert os.sched_getaffinity(0) == before
    assert os.sched_getaffinity(0) == before


def test_ranks_have_cores_of_their_own_where_they_need_all_of_them():
    cores = sorted(os.sched_getaffinity(0))
    taken = [list(own_cores(place, len(cores), 1)) for place in range(len(cores))]
    assert taken == [[core] for core in cores]
    assert list(own_cores(0, 1, len(cores))) == cores
    assert not own_cores(0, len(cores) + 1, 1)
