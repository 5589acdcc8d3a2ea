"""Bytes are the file's, cached or not, whatever its length."""

import os
from contextlib import suppress
from pathlib import Path

import pytest

from rtp_serve.loader.local_files import LocalFiles
from rtp_serve.loader.read_plan import ALIGNMENT
from rtp_serve.loader.staging import StagingRing


def make_file(path: Path, num_bytes: int) -> bytes:
    content = os.urandom(num_bytes)
    path.write_bytes(content)
    return content


def drop_from_cache(path: Path, start: int = 0) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    os.fsync(descriptor)
    os.posix_fadvise(descriptor, start, 0, os.POSIX_FADV_DONTNEED)
    os.close(descriptor)


@pytest.mark.parametrize("cached_pages", [0, 3, None], ids=["cold", "in part", "warm"])
@pytest.mark.parametrize("num_bytes", [8 * ALIGNMENT, 5 * ALIGNMENT + 1, 4 * ALIGNMENT + 512, 10])
def test_a_read_gives_the_files_bytes(tmp_path: Path, num_bytes: int, cached_pages: int | None):
    content = make_file(tmp_path / "file", num_bytes)
    if cached_pages is not None:
        drop_from_cache(tmp_path / "file", cached_pages * ALIGNMENT)
    with LocalFiles() as files, StagingRing(1, 6 * ALIGNMENT).buffer() as into:
        for offset in range(0, num_bytes, ALIGNMENT):
            count = files(tmp_path / "file", offset, into)
            assert count == min(len(into), num_bytes - offset)
            assert into[:count] == content[offset : offset + count]


def test_a_cold_read_leaves_the_page_cache_alone(tmp_path: Path):
    """But for the page that the question brings, and what the disk gives with it."""
    make_file(tmp_path / "file", 16 << 20)
    drop_from_cache(tmp_path / "file")
    if cached_mib(tmp_path / "file"):
        pytest.skip("files here are not on a disk")
    drop_from_cache(tmp_path / "file")
    with LocalFiles() as files, StagingRing(1, 16 << 20).buffer() as into:
        files(tmp_path / "file", 0, into)
    assert not cached_mib(tmp_path / "file")


def cached_mib(path: Path) -> list[int]:
    """Of a file of 16 MiB, where the page cache has the beginning of one of the middle ones."""
    found = []
    with path.open("rb") as file:
        for mib in range(1, 15):
            with suppress(BlockingIOError):
                os.preadv(file.fileno(), [bytearray(1)], mib << 20, os.RWF_NOWAIT)
                found.append(mib)
    return found


def test_beyond_the_end_there_is_nothing(tmp_path: Path):
    make_file(tmp_path / "file", 100)
    with LocalFiles() as files, StagingRing(1, ALIGNMENT).buffer() as into:
        assert files(tmp_path / "file", ALIGNMENT, into) == 0


def test_a_filesystem_without_direct_io_is_read_through_the_cache():
    """/proc refuses O_DIRECT, and knows no cached pages."""
    with LocalFiles() as files, StagingRing(1, ALIGNMENT).buffer() as into:
        count = files(Path("/proc/self/cmdline"), 0, into)
        assert bytes(into[:count]) == Path("/proc/self/cmdline").read_bytes()


def test_files_are_closed_at_the_end(tmp_path: Path):
    make_file(tmp_path / "file", 100)
    before = os.listdir("/proc/self/fd")
    with LocalFiles() as files, StagingRing(1, ALIGNMENT).buffer() as into:
        files(tmp_path / "file", 0, into)
        assert len(os.listdir("/proc/self/fd")) > len(before)
    assert len(os.listdir("/proc/self/fd")) == len(before)


def test_a_missing_file_is_the_systems_error(tmp_path: Path):
    with (
        LocalFiles() as files,
        StagingRing(1, ALIGNMENT).buffer() as into,
        pytest.raises(FileNotFoundError),
    ):
        files(tmp_path / "file", 0, into)
