"""Messages through shared memory, between threads and between processes that die."""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rtp_serve.clock import WallClock
from rtp_serve.errors import ChannelClosed, RankLate, RankLost
from rtp_serve.native.step_ring import StepReader, StepWriter

RING_BYTES = 64
ROOT = Path(__file__).parents[3]


@pytest.fixture
def name() -> Iterator[str]:
    name = f"test-ring-{os.getpid()}"
    yield name
    assert not list(Path("/dev/shm").glob(f"rtp_serve-{name}*"))


def open_ring(name: str, num_readers: int = 1) -> tuple[StepWriter, list[StepReader]]:
    writer = StepWriter(name, num_readers, ring_bytes=RING_BYTES)
    readers = [
        StepReader(name, reader, num_readers, ring_bytes=RING_BYTES)
        for reader in range(num_readers)
    ]
    return writer, readers


messages = st.lists(
    st.one_of(st.binary(max_size=20), st.binary(min_size=50, max_size=300)), max_size=12
)


@settings(deadline=None, max_examples=40)
@given(sent=messages, num_readers=st.integers(1, 3))
def test_every_reader_gets_every_message_in_order(sent: list[bytes], num_readers: int):
    writer, readers = open_ring(f"test-ring-{os.getpid()}-x", num_readers)
    came: list[list[bytes | None]] = [[] for _ in readers]

    def read_all(reader: int) -> None:
        came[reader] = [readers[reader].read(20) for _ in sent]

    threads = [threading.Thread(target=read_all, args=(each,)) for each in range(num_readers)]
    for thread in threads:
        thread.start()
    for message in sent:
        writer.write(message, 20)
    for thread in threads:
        thread.join()
    assert came == [sent] * num_readers


def test_nothing_comes_in_time(name: str):
    writer, (reader,) = open_ring(name)
    assert reader.read(0) is None
    writer.write(b"x", 1)
    assert reader.read(0) == b"x"
    assert reader.read(0.01) is None


def test_a_message_that_came_in_part_is_kept(name: str):
    writer, (reader,) = open_ring(name)
    long = bytes(range(200))
    writing = threading.Thread(target=writer.write, args=(long, 20))
    writing.start()
    while (message := reader.read(0)) is None:
        pass
    writing.join()
    assert message == long


def test_a_reader_that_does_not_read_is_late(name: str):
    writer, readers = open_ring(name, 2)
    for _ in range(RING_BYTES // 16):
        writer.write(b"12345678", 0.05)
        assert readers[0].read(0) == b"12345678"
    with pytest.raises(RankLate) as caught:
        writer.write(b"", 0.05)
    assert caught.value.rank == 1
    with pytest.raises(ChannelClosed):
        writer.write(b"", 1)


def test_what_was_written_is_read_before_the_end(name: str):
    writer, (reader,) = open_ring(name)
    writer.write(b"last", 1)
    writer.close()
    assert reader.read(1) == b"last"
    with pytest.raises(ChannelClosed):
        reader.read(1)


@pytest.mark.parametrize("who", ["writer", "reader"])
def test_closing_wakes_a_reader(name: str, who: str):
    writer, (reader,) = open_ring(name)
    errors: list[BaseException] = []

    def read() -> None:
        try:
            reader.read(60)
        except ChannelClosed as error:
            errors.append(error)

    thread = threading.Thread(target=read)
    thread.start()
    (writer if who == "writer" else reader).close()
    thread.join()
    assert len(errors) == 1


def test_a_reader_that_has_left_is_lost(name: str):
    writer, readers = open_ring(name, 2)
    readers[1].close()
    with pytest.raises(RankLost, match="rank 1"):
        writer.write(b"x", 1)


def test_a_place_is_taken_once_and_sizes_agree(name: str):
    writer = StepWriter(name, 2, ring_bytes=RING_BYTES)
    with pytest.raises(ValueError, match="somebody else has joined"):
        StepWriter(name, 2, ring_bytes=RING_BYTES)
    with pytest.raises(ValueError, match="with other sizes"):
        StepReader(name, 0, 2, ring_bytes=2 * RING_BYTES)
    writer.close()


# A process that opens one side, says so, and waits to be killed.
PEER = """
import sys
from rtp_serve.native.step_ring import StepReader, StepWriter
side, name = sys.argv[1:]
peer = StepWriter(name, 1) if side == "writer" else StepReader(name, 0, 1)
print("open", flush=True)
sys.stdin.read()
"""


def start_peer(side: str, name: str) -> subprocess.Popen[bytes]:
    peer = subprocess.Popen(
        [sys.executable, "-c", PEER, side, name],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd=ROOT,
    )
    assert peer.stdout is not None
    assert peer.stdout.readline() == b"open\n"
    return peer


def test_a_killed_writer_is_noticed(name: str):
    peer = start_peer("writer", name)
    reader = StepReader(name, 0, 1)
    killed_s = WallClock().monotonic()
    peer.send_signal(signal.SIGKILL)  # and nobody waits for it yet: it stays a zombie
    with pytest.raises(RankLost, match="the writer of steps has died"):
        reader.read(20)
    assert WallClock().monotonic() - killed_s < 0.5
    peer.communicate()


def test_a_killed_reader_is_noticed(name: str):
    peer = start_peer("reader", name)
    writer = StepWriter(name, 1)
    killed_s = WallClock().monotonic()
    peer.send_signal(signal.SIGKILL)
    with pytest.raises(RankLost, match="rank 0 has died"):
        writer.write(bytes(4 << 20), 20)
    assert WallClock().monotonic() - killed_s < 0.5
    peer.communicate()


def test_a_name_that_the_dead_have_left_is_free(name: str):
    peer = start_peer("writer", name)
    peer.kill()
    peer.communicate()
    assert list(Path("/dev/shm").glob(f"rtp_serve-{name}*"))
    writer, _ = open_ring(name)
    writer.check()
