"""A disk that is full or broken costs blocks, and nothing else."""

import errno
import logging
import os
from dataclasses import replace
from pathlib import Path

import pytest

from rtp_serve.clock import VirtualClock
from rtp_serve.errors import DiskUnavailable
from rtp_serve.kv_store.disk.file_io import FileIO
from rtp_serve.kv_store.disk.health import TierState
from rtp_serve.kv_store.disk.segment import new_header
from tests.unit.kv_store.blocks import make_chain
from tests.unit.kv_store.disk.faults import FailingIO
from tests.unit.kv_store.disk.tiers import (
    PER_SEGMENT,
    SETTINGS,
    make_tier,
    put,
    readable,
    segment_files,
)

OLD, NEW = make_chain(PER_SEGMENT, "old"), make_chain(PER_SEGMENT + 1, "new")


@pytest.mark.parametrize("name", ["reserve", "write", "sync", "sync_directory", "free_bytes"])
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO])
def test_a_tier_that_cannot_write_is_degraded_and_recovers(
    tmp_path: Path, name: str, number: int, caplog: pytest.LogCaptureFixture
) -> None:
    clock, failing = VirtualClock(), FailingIO([name])
    caplog.set_level(logging.WARNING)
    with make_tier(tmp_path, clock=clock, io=failing.io) as tier:
        assert all(put(tier, OLD))
        failing.errno = number
        assert not any(put(tier, NEW))
        assert tier.stats().state is TierState.DEGRADED
        assert readable(tier, tmp_path, OLD) == PER_SEGMENT
        tier.check_invariants()
        num_failures = failing.num_failures
        for wait_s in (10, 20, 40):
            clock.advance(wait_s - 1)
            assert not any(put(tier, NEW))
            assert failing.num_failures == num_failures, "the disk is left alone"
            clock.advance(1)
            assert not any(put(tier, NEW))
            assert failing.num_failures > num_failures, "the disk is asked again"
            num_failures = failing.num_failures
        assert tier.stats().num_errors == 4
        assert len(caplog.records) == 1
        failing.errno = None
        clock.advance(80)
        assert all(put(tier, NEW))
        assert tier.stats().state is TierState.READY
        assert readable(tier, tmp_path, NEW) == len(NEW)
        assert len(caplog.records) == 2
        tier.check_invariants()


def test_what_was_committed_before_an_error_stays(tmp_path: Path) -> None:
    clock, failing = VirtualClock(), FailingIO(["sync"])
    with make_tier(tmp_path, clock=clock, io=failing.io) as tier:
        put(tier, OLD[:2])
        failing.errno = errno.EIO
        assert put(tier, NEW) == (False,) * len(NEW)
        assert len(segment_files(tmp_path)) == tier.stats().num_segments == 1
        clock.advance(100)
        assert put(tier, NEW) == (False,) * len(NEW)
        assert len(segment_files(tmp_path)) == tier.stats().num_segments == 1, "an empty one stays"
        clock.advance(100)
        assert put(tier, OLD) == (True, True, *[False] * (PER_SEGMENT - 2))
        assert tier.stats().counts.refused == 2 * len(NEW) + PER_SEGMENT - 2
    with make_tier(tmp_path) as tier:
        assert readable(tier, tmp_path, OLD) == 2


@pytest.mark.parametrize("names", [["unlink"], ["truncate"], ["unlink", "truncate"]])
def test_files_that_do_not_go_stay_counted_and_go_later(tmp_path: Path, names: list[str]) -> None:
    clock, failing = VirtualClock(), FailingIO(names)
    chains = [make_chain(PER_SEGMENT, str(i)) for i in range(40)]
    with make_tier(tmp_path, clock=clock, io=failing.io) as tier:
        failing.errno = errno.EIO
        for chain in chains[:20]:
            put(tier, chain)
            tier.check_invariants()
        failing.errno = None
        clock.advance(1000)
        for chain in chains[20:]:
            assert all(put(tier, chain))
            tier.check_invariants()
        assert len(segment_files(tmp_path)) == tier.stats().num_segments


def test_a_disk_that_others_filled_is_not_filled_further(tmp_path: Path) -> None:
    free_bytes = [1 << 40]
    io = FileIO(free_bytes=lambda _: free_bytes[0])
    settings = replace(SETTINGS, min_free_bytes=1 << 30)
    with make_tier(tmp_path, settings, io=io) as tier:
        assert all(put(tier, OLD))
        free_bytes[0] = (1 << 30) + SETTINGS.file_bytes - 1
        assert not any(put(tier, NEW))
        assert tier.lookup(OLD) == [], "the oldest segment was given back to make room"
        assert tier.stats().state is TierState.DEGRADED


def test_blocks_that_the_disk_does_not_read_are_missed_and_forgotten(tmp_path: Path) -> None:
    failing = FailingIO(["read"])
    with make_tier(tmp_path, io=failing.io) as tier:
        put(tier, OLD)
        location = tier.lookup(OLD)[0]
        failing.errno = errno.EIO
        assert tier.quarantine(location)
        failing.errno = None
        assert tier.lookup(OLD) == []
        assert len(tier.lookup(OLD[1:])) == PER_SEGMENT - 1


def test_a_segment_that_the_disk_does_not_read_at_the_start_is_lost(tmp_path: Path) -> None:
    with make_tier(tmp_path) as tier:
        put(tier, OLD)
    failing = FailingIO(["status"], errno.EIO)
    with make_tier(tmp_path, io=failing.io) as tier:
        assert tier.lookup(OLD) == []
        assert tier.stats().counts.lost_segments == 1
        tier.check_invariants()


def test_a_segment_without_blocks_goes_at_the_start(tmp_path: Path) -> None:
    with make_tier(tmp_path) as tier:
        put(tier, OLD)
    segment = segment_files(tmp_path)[0]
    os.truncate(segment, new_header(1, SETTINGS.file_bytes).start)
    with make_tier(tmp_path) as tier:
        assert segment_files(tmp_path) == []
        assert tier.stats().counts.lost_segments == 0
        assert all(put(tier, NEW))


def test_a_large_file_that_is_no_segment_and_stays_is_counted(tmp_path: Path) -> None:
    (tmp_path / f"{3:020}.segment").write_bytes(b"x" * 300_000)
    with make_tier(tmp_path, io=FailingIO(["unlink"], errno.EIO).io) as tier:
        assert tier.stats().used_bytes > 300_000
        tier.check_invariants()


@pytest.mark.parametrize("name", ["make_directory", "list_names", "lock", "open"])
def test_a_directory_that_does_not_work_is_unavailable(tmp_path: Path, name: str) -> None:
    with pytest.raises(DiskUnavailable):
        make_tier(tmp_path, io=FailingIO([name], errno.EACCES).io)
    make_tier(tmp_path).close()


def test_a_filesystem_without_direct_io_is_read_and_written_through_the_cache(
    tmp_path: Path,
) -> None:
    def buffered(path: Path, flags: int, mode: int) -> int:
        if flags & os.O_DIRECT:
            raise OSError(errno.EINVAL, "no direct I/O")
        return os.open(path, flags, mode)

    with make_tier(tmp_path, io=FileIO(open=buffered)) as tier:
        assert all(put(tier, NEW))
        assert readable(tier, tmp_path, NEW) == len(NEW)
