"""Reads go on beside each other in bounded memory, and end in one error or in none."""

import threading
from pathlib import Path

import numpy as np
import pytest

from rtp_serve.clock import VirtualClock
from rtp_serve.errors import CheckpointError
from rtp_serve.loader.load_figures import LoadFigures, LoadTimer
from rtp_serve.loader.read_plan import ALIGNMENT, Read, ReadSizes, TensorRows, plan_reads
from rtp_serve.loader.reader import run_reads
from rtp_serve.loader.safetensors_header import StoredTensor
from rtp_serve.loader.staging import StagingRing

FILE = Path("model.safetensors")
NUM_READS = 20
_TENSOR = StoredTensor("a", FILE, "U8", (NUM_READS * ALIGNMENT,), 0, NUM_READS * ALIGNMENT)
READS = plan_reads([TensorRows.all_of(_TENSOR)], ReadSizes(read_bytes=ALIGNMENT))


class Store:
    """A file whose every page is filled with the page's number; counts who reads it."""

    def __init__(
        self, broken_page: int | None = None, num_bytes: int = NUM_READS * ALIGNMENT
    ) -> None:
        self.begun: list[int] = []
        self._broken_page = broken_page
        self._num_bytes = num_bytes

    def __call__(self, file: Path, offset: int, into: memoryview) -> int:
        assert file == FILE
        page = offset // ALIGNMENT
        self.begun.append(page)
        if page == self._broken_page:
            raise OSError(5, "Input/output error")
        into[:] = bytes([page]) * len(into)
        return max(0, min(len(into), self._num_bytes - offset))


class Receiver:
    """Keeps what it was given."""

    def __init__(self, broken_page: int | None = None) -> None:
        self.content: dict[int, bytes] = {}
        self._broken_page = broken_page

    def __call__(self, read: Read, data: memoryview) -> None:
        page = read.offset // ALIGNMENT
        if page == self._broken_page:
            raise ZeroDivisionError(page)
        self.content[page] = bytes(data)


def run(store: Store, receiver: Receiver, num_threads: int = 3) -> LoadFigures:
    timer = LoadTimer(VirtualClock())
    *_, figures = run_reads(READS, store, receiver, num_threads, timer)
    return figures


def no_thread_is_left() -> bool:
    return not [each for each in threading.enumerate() if each.name.startswith("load")]


@pytest.mark.parametrize("num_threads", [1, 2, 7, 100])
def test_every_read_is_delivered_with_its_bytes(num_threads: int):
    store, receiver = Store(), Receiver()
    figures = run(store, receiver, num_threads)
    assert (figures.num_reads, figures.num_bytes) == (NUM_READS, NUM_READS * ALIGNMENT)
    assert sorted(store.begun) == list(range(NUM_READS))
    assert receiver.content == {page: bytes([page]) * ALIGNMENT for page in range(NUM_READS)}
    assert no_thread_is_left()


def test_one_thread_reads_in_order():
    store = Store()
    run(store, Receiver(), num_threads=1)
    assert store.begun == list(range(NUM_READS))


def test_reads_overlap_with_deliveries():
    """The first delivery ends only after every other thread has read, or this never ends."""
    others = threading.Barrier(3)

    def deliver(read: Read, data: memoryview) -> None:
        if read.offset < 3 * ALIGNMENT:
            others.wait(timeout=60)

    *_, figures = run_reads(READS, Store(), deliver, 3, LoadTimer(VirtualClock()))
    assert figures.num_reads == NUM_READS


@pytest.mark.parametrize("num_threads", [1, 4])
@pytest.mark.parametrize("page", [0, 7, NUM_READS - 1])
def test_a_read_that_fails_is_one_error_and_the_rest_is_given_up(page: int, num_threads: int):
    store = Store(broken_page=page)
    with pytest.raises(CheckpointError, match=r"cannot read model\.safetensors: .*Input/output"):
        run(store, Receiver(), num_threads)
    assert no_thread_is_left()
    assert page in store.begun


def test_an_error_of_the_receiver_arrives_as_it_is():
    with pytest.raises(ZeroDivisionError):
        run(Store(), Receiver(broken_page=5))
    assert no_thread_is_left()


def test_a_file_that_has_shrunk_is_an_error():
    with pytest.raises(CheckpointError, match=r"ends at byte \d+, .*tensors up to .*changed"):
        run(Store(num_bytes=NUM_READS * ALIGNMENT - 1), Receiver())


def test_who_stops_early_leaves_nothing_behind():
    """The first delivery lasts until the caller stops."""
    has_stopped = threading.Event()

    def deliver(read: Read, data: memoryview) -> None:
        assert has_stopped.wait(timeout=60)

    store = Store()
    reading = run_reads(READS, store, deliver, 1, LoadTimer(VirtualClock()))
    assert next(reading).num_reads == 0
    closing = threading.Thread(target=reading.close)
    closing.start()
    has_stopped.set()
    closing.join(timeout=60)
    assert no_thread_is_left()


def test_no_reads_need_no_thread():
    assert not list(run_reads([], Store(), Receiver(), 4, LoadTimer(VirtualClock())))


def test_a_ring_lends_each_buffer_to_one_at_a_time():
    ring = StagingRing(2, ALIGNMENT)
    with ring.buffer() as first, ring.buffer() as second:
        first[:], second[:] = bytes([1]) * ALIGNMENT, bytes([2]) * ALIGNMENT
        assert (first[0], second[0], ring.num_free) == (1, 2, 0)
    assert ring.num_free == 2
    with pytest.raises(ZeroDivisionError), ring.buffer():
        raise ZeroDivisionError
    assert ring.num_free == 2


def test_a_buffer_begins_at_a_page():
    with StagingRing(3, 3 * ALIGNMENT).buffer() as buffer:
        assert np.frombuffer(buffer, np.uint8).ctypes.data % ALIGNMENT == 0
        assert len(buffer) == 3 * ALIGNMENT
