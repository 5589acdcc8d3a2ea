"""What starting leaves in a process's memory and steps do not need, given back."""

import ctypes
import mmap
import re
from collections.abc import Iterator
from pathlib import Path

import torch

_SMAPS = Path("/proc/self/smaps")
_TORCH_LIBRARIES = Path(torch.__file__).parent / "lib"

_CODE = re.compile(r"([0-9a-f]+)-([0-9a-f]+) r-xp \S+ \S+ \S+ +(/.*)")
_OWN_PAGES = re.compile(r"Private_Dirty: +(\d+) kB")


def return_spare_memory() -> None:
    """To be called before the first step, which brings back what it needs by page faults. Where
    the system lacks the calls nothing is done."""
    _return_free_heap()
    _unmap_unused_code()


def _return_free_heap() -> None:
    """Weights on their way leave holes in the heap, which glibc would keep."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def _unmap_unused_code() -> None:
    """Of torch's libraries: most of what is mapped has registered operators and runs no more.

    It stays in the page cache, and code that runs is mapped from there again.
    """
    if not _SMAPS.exists():
        return
    advise = ctypes.CDLL(None).madvise
    advise.argtypes = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int
    for start, num_bytes in unwritten_code(_SMAPS.read_text("utf-8"), _TORCH_LIBRARIES):
        advise(start, num_bytes, mmap.MADV_DONTNEED)


def unwritten_code(smaps: str, directory: Path) -> Iterator[tuple[int, int]]:
    """(address, bytes) of the mappings of code of files in `directory`, but for those of which
    pages are the process's own: these could not be read again."""
    mapping = None
    for line in smaps.splitlines():
        if found := _CODE.fullmatch(line):
            start, end, path = found.groups()
            is_wanted = Path(path).parent == directory
            mapping = (int(start, 16), int(end, 16) - int(start, 16)) if is_wanted else None
        elif mapping and (own := _OWN_PAGES.fullmatch(line)):
            if own[1] == "0":
                yield mapping
            mapping = None
