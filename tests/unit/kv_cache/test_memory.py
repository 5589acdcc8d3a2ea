import mmap
import threading
from pathlib import Path

from rtp_serve.kv_cache.memory import take_pages, zeroed

SIZE = 40 << 20


def resident_bytes() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * mmap.PAGESIZE


def test_memory_is_zeros_and_can_be_written_while_its_pages_are_taken():
    region = zeroed(SIZE)
    for place in range(0, SIZE, 1 << 20):
        assert region[place] == 0
        region[place] = 7
    for thread in threading.enumerate():
        if thread.name == "kv-memory":
            thread.join()
    assert all(region[place] == 7 for place in range(0, SIZE, 1 << 20))


def test_taking_pages_makes_all_of_them_resident_and_changes_none():
    region = mmap.mmap(-1, SIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    region[SIZE - 1] = 3
    before = resident_bytes()
    assert take_pages(region)
    assert resident_bytes() - before > SIZE * 0.9
    assert region[0] == 0
    assert region[SIZE - 1] == 3
