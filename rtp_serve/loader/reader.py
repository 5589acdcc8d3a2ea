"""Carries out planned reads with a few threads, each read handed over as soon as it is there.

A thread takes a staging buffer, reads into it, hands it over (so converting and packing are the
same thread's work) and gives it back. While one transforms, others read. Memory beyond what the
receiver keeps is one buffer a thread. Knows nothing of tensors.
"""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed

from rtp_serve.errors import CheckpointError
from rtp_serve.loader.load_figures import LoadTimer
from rtp_serve.loader.local_files import ReadInto
from rtp_serve.loader.read_plan import Read
from rtp_serve.loader.staging import StagingRing

Deliver = Callable[[Read, memoryview], None]
"""Takes a read's bytes, which are valid during the call only. Called by several threads at once."""


def run_reads(
    reads: Sequence[Read],
    read_into: ReadInto,
    deliver: Deliver,
    num_threads: int,
    timer: LoadTimer,
) -> Iterator[Read]:
    """Begins the reads in order, and yields each one after it has been delivered.

    The first error ends all: reads not begun are given up, those under way are waited for, and it
    is raised here; CheckpointError where a file cannot be read. The same goes for an iterator that
    is closed early.
    """
    if not reads:
        return
    num_threads = min(num_threads, len(reads))
    ring = StagingRing(num_threads, max(read.num_bytes for read in reads))

    def run(read: Read) -> Read:
        with ring.buffer() as buffer:
            into = buffer[: read.num_bytes]
            with timer.reading():
                _read(read, read_into, into)
            with timer.transforming():
                deliver(read, into)
        timer.count(read.wanted_bytes)
        return read

    pool = ThreadPoolExecutor(num_threads, thread_name_prefix="load")
    try:
        for future in as_completed([pool.submit(run, read) for read in reads]):
            yield future.result()
    finally:
        pool.shutdown(cancel_futures=True)


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
