import errno
import fcntl
import itertools
import logging
import mmap
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from rtp_serve.errors import ArenaMismatch, ArenaUnavailable
from rtp_serve.kv_store.arena_files import MIN_ARENA_BYTES, ArenaFiles, ArenaMember, SharedMemoryIO
from rtp_serve.kv_store.available_memory import available_bytes
from rtp_serve.kv_store.pin_file import Pin, PinFile
from tests.unit.kv_store.arenas import LAYOUT, make_reservation, place_of, put, read

ROOT = Path(__file__).parents[3]
SLAB_BYTES = 5000
NUM_BYTES = 1 << 20
JOIN = """
import sys
from collections.abc import Callable
from pathlib import Path
from rtp_serve.kv_store.arena_files import ArenaFiles
member = ArenaFiles(Path(sys.argv[1])).join("n", 5000, bytes.fromhex(sys.argv[2]), 1 << 20)
print(member.own(), flush=True)
sys.stdin.read()
"""


def join(root: Path, name: str = "n", slab_bytes: int = SLAB_BYTES) -> ArenaMember:
    return ArenaFiles(root).join(name, slab_bytes, LAYOUT, NUM_BYTES)


def join_elsewhere(root: Path) -> tuple[subprocess.Popen[str], str]:
    """Another process that joins, tries to own the index and stays; the epoch it got."""
    process = subprocess.Popen(
        [sys.executable, "-c", JOIN, str(root), LAYOUT.hex()],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )
    assert process.stdout is not None
    return process, process.stdout.readline().strip()


def kill(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.communicate()


def files(root: Path) -> list[str]:
    return sorted(path.name for path in root.iterdir())


def test_members_share_the_slabs(tmp_path: Path):
    first, second = join(tmp_path), join(tmp_path)
    reservation = make_reservation("a", slab=3)
    assert put(first.arena, reservation, "a")
    assert read(second.arena, place_of(reservation)) == read(first.arena, place_of(reservation))
    assert first.arena.geometry == second.arena.geometry
    assert first.arena.geometry.total_bytes <= NUM_BYTES


def test_the_first_member_decides_how_many_slabs_there_are(tmp_path: Path):
    first = join(tmp_path)
    second = ArenaFiles(tmp_path).join("n", SLAB_BYTES, LAYOUT, 2 * NUM_BYTES)
    assert second.arena.geometry == first.arena.geometry


def test_an_arena_lies_in_reserved_memory_and_is_its_users_alone(tmp_path: Path):
    member = join(tmp_path)
    status = member.path.stat()
    assert status.st_size == member.arena.geometry.total_bytes
    assert status.st_blocks * 512 >= status.st_size
    assert status.st_mode & 0o777 == 0o600


def test_a_name_in_use_for_other_blocks_is_refused(tmp_path: Path):
    member = join(tmp_path)
    with pytest.raises(ArenaMismatch, match="slabs of 5000 bytes, not 6000"):
        join(tmp_path, slab_bytes=6000)
    with pytest.raises(ArenaMismatch, match="layout"):
        ArenaFiles(tmp_path).join("n", SLAB_BYTES, bytes(32), NUM_BYTES)
    assert member.path.exists()


def test_a_name_in_use_for_something_else_is_refused(tmp_path: Path):
    path = ArenaFiles(tmp_path).path("n")
    path.write_bytes(b"something else")
    with path.open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_SH)
        with pytest.raises(ArenaMismatch, match="not an arena"):
            join(tmp_path)
    assert join(tmp_path).arena.geometry.slab_bytes == SLAB_BYTES


def test_what_dead_members_left_is_made_anew(tmp_path: Path):
    process, _ = join_elsewhere(tmp_path)
    member = join(tmp_path)
    reservation = make_reservation("a")
    put(member.arena, reservation, "a")
    member.leave()
    assert read(join_and_leave(tmp_path), place_of(reservation)) is not None
    kill(process)
    assert files(tmp_path) == ["rtp_serve-n.arena"]
    assert read(join_and_leave(tmp_path), place_of(reservation)) is None


def join_and_leave(root: Path):
    member = join(root)
    member.leave()
    return member.arena


def test_arenas_that_nobody_holds_are_removed_and_others_are_not(tmp_path: Path):
    held, left = join(tmp_path, "held"), join(tmp_path, "left")
    other = tmp_path / "rtp_serve-other"
    other.write_text("not an arena")
    process, _ = join_elsewhere(tmp_path)
    for member in (held, left):
        PinFile(member.path).write([Pin("application", bytes(32), None)])
    left.leave()
    assert ArenaFiles(tmp_path).remove_unheld() == [left.path]
    kill(process)
    assert ArenaFiles(tmp_path).remove_unheld() == [tmp_path / "rtp_serve-n.arena"]
    assert files(tmp_path) == [held.path.name, "rtp_serve-held.pins", other.name]
    held.leave()
    held.leave()


def test_one_process_owns_the_index_until_it_dies(tmp_path: Path):
    process, epoch = join_elsewhere(tmp_path)
    assert epoch == "1"
    member, other = join(tmp_path), join(tmp_path)
    assert member.own() is None
    kill(process)
    assert member.own() == 2
    assert other.own() is None
    member.leave()
    assert other.own() == 3


def test_closing_another_descriptor_of_the_file_does_not_end_ownership(tmp_path: Path):
    """As it would with a lock of the process."""
    owner, other = join(tmp_path), join(tmp_path)
    assert owner.own() == 1
    with owner.path.open("rb"):
        pass
    assert other.own() is None


def test_a_maker_that_gets_no_memory_leaves_nothing(tmp_path: Path):
    def refuse(_descriptor: int, _offset: int, _num_bytes: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    io = SharedMemoryIO(reserve=refuse)
    with pytest.raises(ArenaUnavailable, match="No space left"):
        ArenaFiles(tmp_path, io).join("n", SLAB_BYTES, LAYOUT, NUM_BYTES)
    assert files(tmp_path) == []


def test_a_maker_that_is_overtaken_joins(tmp_path: Path):
    faster: list[ArenaMember] = []

    def reserve(descriptor: int, offset: int, num_bytes: int) -> None:
        os.posix_fallocate(descriptor, offset, num_bytes)
        faster.append(join(tmp_path))

    slower = ArenaFiles(tmp_path, SharedMemoryIO(reserve=reserve)).join(
        "n", SLAB_BYTES, LAYOUT, NUM_BYTES
    )
    assert are_together(slower, faster[0])


def test_a_file_that_took_a_dead_one_s_place_is_not_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """The name means another file when the lock of the dead one is there."""
    join_and_leave(tmp_path)
    others: list[ArenaMember] = []
    before_lock(monkeypatch, 1, lambda: others.append(join(tmp_path)))
    assert are_together(join(tmp_path), others[0])


def test_a_file_that_is_removed_while_one_waits_for_it_is_not_joined(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    held = join(tmp_path)
    others: list[ArenaMember] = []

    def replace() -> None:
        held.leave()
        others.append(join(tmp_path))

    before_lock(monkeypatch, 2, replace)
    assert are_together(join(tmp_path), others[0])


def before_lock(monkeypatch: pytest.MonkeyPatch, number: int, act: Callable[[], None]) -> None:
    """Do something before so many locks of files are taken, counted from now on."""
    lock, calls = fcntl.flock, itertools.count(1)

    def act_and_lock(descriptor: int, operation: int) -> None:
        if next(calls) == number:
            monkeypatch.undo()
            act()
        lock(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", act_and_lock)


def are_together(one: ArenaMember, other: ArenaMember) -> bool:
    reservation = make_reservation("a")
    assert put(one.arena, reservation, "a")
    return read(other.arena, place_of(reservation)) is not None


def test_a_file_that_is_a_link_is_refused(tmp_path: Path):
    ArenaFiles(tmp_path).path("n").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ArenaUnavailable, match="cannot open"):
        join(tmp_path)


def test_a_directory_that_is_not_there_makes_no_arena(tmp_path: Path):
    with pytest.raises(ArenaUnavailable, match="cannot make"):
        join(tmp_path / "absent")


def test_an_arena_without_room_for_a_block_is_none(tmp_path: Path):
    with pytest.raises(ArenaUnavailable, match="no slab"):
        join(tmp_path, slab_bytes=NUM_BYTES)


def test_pages_are_taken_without_changing_them(tmp_path: Path):
    member = join(tmp_path)
    reservation = make_reservation("a")
    thread = member.take_pages()
    put(member.arena, reservation, "a")
    thread.join()
    assert read(member.arena, place_of(reservation)) is not None


@pytest.mark.parametrize(
    ("configured_mb", "free_mb", "expected_mb"),
    [(100, 1000, 100), (600, 1000, 500), (64, 128, 64), (63, 1000, 0), (600, 127, 0)],
)
def test_an_arena_takes_at_most_half_of_what_is_free(
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    configured_mb: int,
    free_mb: int,
    expected_mb: int,
):
    arenas = ArenaFiles(tmp_path, SharedMemoryIO(free_bytes=lambda _: free_mb << 20))
    with caplog.at_level(logging.WARNING):
        assert arenas.num_bytes(configured_mb << 20) == expected_mb << 20
    assert len(caplog.records) == (expected_mb == 0)
    assert MIN_ARENA_BYTES == 64 << 20


def test_what_is_free_is_asked_of_file_system_and_machine(tmp_path: Path):
    half = ArenaFiles(tmp_path).num_bytes(1 << 60)
    assert 0 < half <= shutil.disk_usage(tmp_path).free
    assert half <= available_bytes()


def test_an_arena_that_cannot_be_mapped_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def refuse(_descriptor: int, _num_bytes: int) -> None:
        raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))

    with monkeypatch.context() as patched:
        patched.setattr(mmap, "mmap", refuse)
        with pytest.raises(ArenaUnavailable, match="cannot map"):
            join(tmp_path)
    assert ArenaFiles(tmp_path).remove_unheld() == [ArenaFiles(tmp_path).path("n")]


@pytest.mark.parametrize("name", ["", "a/b", "..\0", "a b"])
def test_a_name_that_is_no_file_name_is_caught(tmp_path: Path, name: str):
    with pytest.raises(AssertionError, match="arena's name"):
        ArenaFiles(tmp_path).path(name)
