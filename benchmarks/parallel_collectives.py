"""Latency of an all-reduce between two processes, by size and backend."""

import time
from functools import partial
from statistics import median

import torch

from benchmarks.rank_processes import run_processes, unique_name
from benchmarks.report import Report, say
from rtp_serve.native.rank_group import RankGroup
from rtp_serve.parallel.collectives import Collectives
from rtp_serve.parallel.gloo import gloo, reach_store, serve_store
from rtp_serve.parallel.shared_memory import SharedMemory

_WORLD_SIZE = 2
_SIZES_KIB = (1, 16, 256, 4096)
_CALLS = {1: 2000, 16: 2000, 256: 400, 4096: 30}
_HOST = "127.0.0.1"


def measure(report: Report, repetitions: int) -> None:
    """Medians of calls, one a repetition."""
    for backend in ("shared_memory", "gloo"):
        say(f"all-reduce through {backend}")
        store = serve_store(_HOST)
        join = partial(_join, backend, unique_name("benchmark"), store.port)
        first, _ = run_processes(_WORLD_SIZE, _time_all, join, repetitions)
        for size_kib, medians in first.items():
            if backend == "shared_memory" and size_kib == 16:
                report.add("allreduce_16k_us", medians)
            report.add(f"allreduce_{backend}_{size_kib}k_us", medians)


def _join(backend: str, name: str, port: int, rank: int) -> Collectives:
    if backend == "shared_memory":
        return SharedMemory(RankGroup(name, rank, _WORLD_SIZE))
    return gloo(reach_store(_HOST, port), rank, _WORLD_SIZE, address=_HOST)


def _time_all(rank: int, join: "partial[Collectives]", repetitions: int) -> dict[int, list[float]]:
    torch.set_num_threads(1)
    collectives = join(rank)
    found: dict[int, list[float]] = {size: [] for size in _SIZES_KIB}
    for _ in range(repetitions):
        for size_kib in _SIZES_KIB:
            x = torch.zeros(size_kib << 8)
            found[size_kib].append(_time(collectives, x, _CALLS[size_kib]))
    collectives.barrier()
    return found


def _time(collectives: Collectives, x: torch.Tensor, calls: int) -> float:
    """Microseconds of a call."""
    for _ in range(calls // 10):
        collectives.all_reduce(x)
    times = []
    for _ in range(calls):
        start = time.perf_counter()
        collectives.all_reduce(x)
        times.append(time.perf_counter() - start)
    return median(times) * 1e6
