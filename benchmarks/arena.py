"""What does a block's way into the arena and out of it cost, beyond the copy that it has to be?

    python -m benchmarks.arena [--json]

Each repetition copies the same blocks plainly between private and shared memory, by `put`, by
`read_into`, and takes their checksums; blocks are more than caches hold. Ratios are of one
repetition: `put_over_copy_256k` is time of `put` ÷ time of a plain copy into the same slabs.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import typer

from benchmarks.command import run
from benchmarks.report import Report
from rtp_serve.kv_cache.block import BlockHash
from rtp_serve.kv_store.arena import Arena
from rtp_serve.kv_store.arena_files import SHARED_MEMORY, ArenaFiles
from rtp_serve.kv_store.lease import Location
from rtp_serve.kv_store.reservation import Reservation, StoreRequest
from rtp_serve.kv_store.slab_header import checksum_of

_BLOCK_KIB = (256, 512, 1024, 2048)
_TOTAL_BYTES = 128 << 20


@dataclass(frozen=True, slots=True)
class Times:
    """Seconds for all blocks."""

    copy_in_s: float
    copy_out_s: float
    checksum_s: float
    put_s: float
    read_s: float


class Copies:
    """Blocks of one size in private memory, and slabs for them."""

    def __init__(self, arena: Arena, path: Path, num_blocks: int) -> None:
        """`path` is the arena's file, mapped once more for copies that are only that."""
        geometry, block_bytes = arena.geometry, arena.geometry.slab_bytes
        self._arena = arena
        payloads = np.memmap(path, np.uint8, "r+", geometry.payloads_start)
        self._slabs = np.asarray(payloads).reshape(-1, geometry.stride_bytes)
        random = np.random.default_rng(0)
        self._source = random.integers(0, 256, (num_blocks, block_bytes), dtype=np.uint8)
        self._copy = np.zeros_like(self._source)
        self._reservations = [_reservation(slab) for slab in range(num_blocks)]

    def repetition(self) -> Times:
        arena, source, copy, slabs = self._arena, self._source, self._copy, self._slabs
        block_bytes = source.shape[1]
        for each in self._reservations:
            arena.mark_reserved(each)
        places = [Location(each.request.key, each.slab, 1) for each in self._reservations]
        copy_in_s = self._time(lambda i: np.copyto(slabs[i, :block_bytes], source[i]))
        put_s = self._time(lambda i: arena.put([self._reservations[i]], [source[i].data], 0))
        copy_out_s = self._time(lambda i: np.copyto(copy[i], slabs[i, :block_bytes]))
        read_s = self._time(lambda i: arena.read_into([places[i]], [copy[i].data]))
        checksum_s = self._time(lambda i: checksum_of(source[i].data))
        assert np.array_equal(copy, source), "blocks came back as they were not"
        return Times(copy_in_s, copy_out_s, checksum_s, put_s, read_s)

    def _time(self, work: Callable[[int], object]) -> float:
        start = time.perf_counter()
        for block in range(len(self._source)):
            work(block)
        return time.perf_counter() - start


def _reservation(slab: int) -> Reservation:
    key = BlockHash(slab.to_bytes(32, "little"))
    return Reservation(StoreRequest(key, None, "", bytes(8)), slab, 1, "", float("inf"))


def main(repetitions: int = 9, as_json: bool = typer.Option(False, "--json")) -> None:
    """Print times per block and their ratios."""
    report = Report()
    for block_kib in _BLOCK_KIB:
        _measure(block_kib, repetitions, report)
    report.show(as_json=as_json)


def _measure(block_kib: int, repetitions: int, report: Report) -> None:
    block_bytes = block_kib << 10
    files = ArenaFiles(SHARED_MEMORY)
    member = files.join(f"benchmark-{block_kib}", block_bytes, bytes(32), 2 * _TOTAL_BYTES)
    try:
        member.take_pages().join()
        num_blocks = _TOTAL_BYTES // block_bytes
        copies = Copies(member.arena, member.path, num_blocks)
        copies.repetition()
        times = [copies.repetition() for _ in range(repetitions)]
    finally:
        member.leave()
        files.remove_unheld()
    ratios = {
        "put_over_copy": [each.put_s / each.copy_in_s for each in times],
        "read_over_copy": [each.read_s / each.copy_out_s for each in times],
        "put_less_checksum": [(each.put_s - each.checksum_s) / each.copy_in_s for each in times],
        "read_less_checksum": [(each.read_s - each.checksum_s) / each.copy_out_s for each in times],
        "put_us": [each.put_s / num_blocks * 1e6 for each in times],
        "read_us": [each.read_s / num_blocks * 1e6 for each in times],
        "checksum_us": [each.checksum_s / num_blocks * 1e6 for each in times],
    }
    for name, values in ratios.items():
        report.add(f"{name}_{block_kib}k", values)


if __name__ == "__main__":
    run(main)
