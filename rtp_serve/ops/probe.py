"""What the benchmarks ask of the kernels: how fast memory is read, how long their calls take.

No model and no step uses this module. It needs the compiled kernels.
"""

import mmap
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch  # noqa: F401  # before the kernels
from numpy.typing import NDArray

from rtp_kernels import _C

PrefetchHint = Literal["none", "t0", "t1", "nta"]

_NOT_KERNELS = ("isa", "supported_isas", "set_isa", "num_threads", "set_num_threads")


def memory(num_bytes: int, *, has_huge_pages: bool) -> NDArray[np.int64]:
    """New words, touched, on huge pages where the system has them or on none."""
    # Private: the system gives shared memory no huge pages.
    region = mmap.mmap(-1, num_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    region.madvise(mmap.MADV_HUGEPAGE if has_huge_pages else mmap.MADV_NOHUGEPAGE)
    words: NDArray[np.int64] = np.frombuffer(region, np.int64)
    words[:] = 1
    return words


def read(words: NDArray[np.int64], prefetch_bytes: int = 0, hint: PrefetchHint = "none") -> None:
    """Read all of `words` once, split over the calling thread's team (`ops.set_num_threads`).

    Prefetches run `prefetch_bytes` ahead into the cache that `hint` names.
    """
    _C.read_memory(words, prefetch_bytes, hint)


@dataclass(slots=True)
class KernelTime:
    """Time spent inside the compiled module, its checks of arguments included."""

    elapsed_ns: int = 0
    num_calls: int = 0


@contextmanager
def kernel_time(clock_ns: Callable[[], int]) -> Iterator[KernelTime]:
    """While open, every call into the compiled module is timed. For one thread."""
    spent = KernelTime()
    replaced: list[tuple[Any, str, Any]] = []
    try:
        for owner, name, call in _entry_points():
            replaced.append((owner, name, call))
            setattr(owner, name, _timed(call, spent, clock_ns))
        yield spent
    finally:
        for owner, name, call in replaced:
            setattr(owner, name, call)


def _entry_points() -> list[tuple[Any, str, Any]]:
    """(owner, name, callable) of the module's functions and its classes' methods."""
    found: list[tuple[Any, str, Any]] = []
    for name, value in vars(_C).items():
        if isinstance(value, type):
            methods = ((value, key, each) for key, each in vars(value).items())
            found += [entry for entry in methods if _is_kernel(entry[1], entry[2])]
        elif _is_kernel(name, value):
            found.append((_C, name, value))
    return found


def _is_kernel(name: str, value: Any) -> bool:
    return callable(value) and not name.startswith("_") and name not in _NOT_KERNELS


def _timed(
    call: Callable[..., Any], spent: KernelTime, clock_ns: Callable[[], int]
) -> Callable[..., Any]:
    def timed(*args: Any, **kwargs: Any) -> Any:
        started_ns = clock_ns()
        try:
            return call(*args, **kwargs)
        finally:
            spent.elapsed_ns += clock_ns() - started_ns
            spent.num_calls += 1

    return timed
