"""Carries out planned reads with a few threads, each read handed over as soon as it is there.

A thread takes a staging buffer, reads into it, hands it over (so converting and packing are the
same thread's work) and gives it back. While one transforms, others read. Memory beyond what the
receiver keeps is one buffer a thread. Knows nothing of tensors.
"""

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait

from rtp_serve.errors import CheckpointError
from rtp_serve.loader.load_figures import LoadFigures, LoadTimer
from rtp_serve.loader.local_files import ReadInto
from rtp_serve.loader.read_plan import Read
from rtp_serve.loader.staging import StagingRing

Deliver = Callable[[Read, memoryview], None]
"""Takes a read's bytes, which are valid during the call only. Called by several threads at once."""

_REPORT_S = 0.1


def run_reads(
    reads: Sequence[Read],
    read_into: ReadInto,
    deliver: Deliver,
    num_threads: int,
    timer: LoadTimer,
) -> Iterator[LoadFigures]:
    """Begins the reads in order and delivers each; says now and then how far it is.

    The first error ends all: reads not begun are given up, those under way are waited for, and it
    is raised here; CheckpointError where a file cannot be read. The same goes for an iterator that
    is closed early.
    """
    if not reads:
        return
    num_threads = min(num_threads, len(reads))
    ring = StagingRing(num_threads, max(read.num_bytes for read in reads))
    waiting = _WaitingReads(reads)

    def work() -> None:
        with ring.buffer() as buffer:
            while (read := waiting.take()) is not None:
                into = buffer[: read.num_bytes]
                with timer.reading():
                    _read(read, read_into, into)
                with timer.transforming():
                    deliver(read, into)
                timer.count(read.wanted_bytes)

    pool = ThreadPoolExecutor(num_threads, thread_name_prefix="load")
    try:
        working = {pool.submit(work) for _ in range(num_threads)}
        while working:
            done, working = wait(working, _REPORT_S, FIRST_EXCEPTION)
            for each in done:
                each.result()
            yield timer.figures()
    finally:
        waiting.give_up()
        pool.shutdown()


class _WaitingReads:
    """The reads that nobody has begun.

    A thread takes its next read itself. As tasks of a pool, with somebody who waits for each, reads
    took a quarter longer: the interpreter went from thread to thread twice as often.
    """

    def __init__(self, reads: Sequence[Read]) -> None:
        self._lock = threading.Lock()
        self._reads = iter(reads)

    def take(self) -> Read | None:
        """The next one; None when there is no other."""
        with self._lock:
            return next(self._reads, None)

    def give_up(self) -> None:
        with self._lock:
            self._reads = iter(())


def _read(read: Read, read_into: ReadInto, into: memoryview) -> None:
    try:
        count = read_into(read.file, read.offset, into)
    except OSError as error:
        raise CheckpointError(f"cannot read {read.file}: {error}") from error
    if count < read.needed_bytes:
        raise CheckpointError(
            f"{read.file} ends at byte {read.offset + count}, but its header had tensors up to "
            f"{read.offset + read.needed_bytes}: it has changed meanwhile"
        )
