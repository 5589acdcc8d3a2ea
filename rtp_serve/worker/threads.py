"""How many compute threads a step may use."""

import math
import os
import sys
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from rtp_serve import ops

_CGROUP_ROOT = Path("/sys/fs/cgroup")


def use_compute_threads(limit: int | None = None) -> int:
    """Threads of the kernels and torch for the calling thread: its cores, at most `limit`."""
    num_threads = min(available_cores(), limit or available_cores())
    ops.set_num_threads(num_threads)
    if not _is_torch_here():  # should it come, it starts with as many
        os.environ["OMP_NUM_THREADS"] = str(num_threads)
    elif torch.get_num_threads() != num_threads:
        torch.set_num_threads(num_threads)
    return num_threads


def _is_torch_here() -> bool:
    return "torch._C" in sys.modules


@contextmanager
def kept_to(cores: Collection[int]) -> Iterator[None]:
    """The calling thread, and those that it computes with, run on these cores alone meanwhile;
    empty is any."""
    if not cores:
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def own_cores(place: int, num_places: int, num_threads: int) -> Collection[int]:
    """The cores of one of several processes that compute together, of so many threads each.

    Threads of theirs wake each other all the time, and the system would put them on one core, where
    they wait for each other. Where they need all cores each has its own; where there are more it is
    free to find idle ones, for there may be others who think the same: then empty.
    """
    cores = sorted(os.sched_getaffinity(0))
    if num_places * num_threads != len(cores):
        return ()
    return cores[place * num_threads : (place + 1) * num_threads]


def available_cores(cgroup_root: Path = _CGROUP_ROOT) -> int:
    """Cores this process may use: its affinity, cut to the container's CPU quota; at least 1."""
    cores = len(os.sched_getaffinity(0))
    quota = cpu_quota(cgroup_root)
    return cores if quota is None else max(1, min(cores, math.floor(quota)))


def cpu_quota(cgroup_root: Path = _CGROUP_ROOT) -> float | None:
    """Cores' worth of CPU time the control group may use (v2, else v1); None without a limit."""
    unified = _words(cgroup_root / "cpu.max")
    if unified:
        quota, period = unified
    else:
        quotas = _words(cgroup_root / "cpu" / "cpu.cfs_quota_us")
        periods = _words(cgroup_root / "cpu" / "cpu.cfs_period_us")
        if not (quotas and periods):
            return None
        quota, period = quotas[0], periods[0]
    if quota in ("max", "-1"):
        return None
    return int(quota) / int(period)


def _words(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="ascii").split()
    except OSError:
        return []
