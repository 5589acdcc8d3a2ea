import os
import subprocess
import sys
from pathlib import Path

from rtp_serve.loader.store.directory import StoreDirectory
from tests.unit.loader.store_files import flip, make_key, write_file

ROOT = Path(__file__).parents[4]
HOLD = """
import sys
from pathlib import Path
from rtp_serve.loader.store.directory import StoreDirectory
store = StoreDirectory(Path(sys.argv[1]))
with store.maker_lock(sys.argv[2]):
    store.draft(sys.argv[2]).write_text("half")
    print("holding", flush=True)
    sys.stdin.read()
"""


def hold_draft(root: Path, name: str) -> subprocess.Popen[str]:
    """Another process that is making a file and waits for its input to end."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(root), name],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "holding\n"
    return process


def names(store: StoreDirectory) -> list[str]:
    return [file.name for file in store.files()]


def write_files(store: StoreDirectory, *uses_s: float) -> list[str]:
    """A file for each time of last use; their names."""
    keys = [make_key(f"c{index}") for index in range(len(uses_s))]
    for key, used_s in zip(keys, uses_s, strict=True):
        write_file(store, key, used_s)
    return [key.name for key in keys]


def test_files_are_listed_by_their_last_use(tmp_path: Path):
    store = StoreDirectory(tmp_path)
    first, second, third = write_files(store, 300, 100, 200)
    assert names(store) == [second, third, first]
    store.touch(second, 400)
    assert names(store) == [third, first, second]
    assert [file.used_s for file in store.files()] == [200, 300, 400]


def test_room_is_made_by_removing_the_longest_unused(tmp_path: Path):
    store = StoreDirectory(tmp_path)
    first, second, third = write_files(store, 300, 100, 200)
    size = store.finished(first).stat().st_size
    assert store.make_room(0, 3 * size) == []
    assert [file.name for file in store.make_room(size, 3 * size)] == [second]
    assert names(store) == [third, first]
    assert [file.name for file in store.make_room(0, size - 1)] == [third, first]
    assert names(store) == []


def test_a_removed_file_stays_readable_for_who_has_it_open(tmp_path: Path):
    store = StoreDirectory(tmp_path)
    path = write_file(store)
    content = path.read_bytes()
    with path.open("rb") as file:
        store.make_room(0, 0)
        assert not path.exists()
        assert file.read() == content


def test_reading_a_file_is_no_use_of_it(tmp_path: Path):
    store = StoreDirectory(tmp_path)
    write_file(store, used_s=50).read_bytes()
    assert store.files()[0].used_s == 50


def test_a_file_without_a_lock_was_used_when_it_was_written(tmp_path: Path):
    store = StoreDirectory(tmp_path)
    path = write_file(store)
    path.with_suffix(".lock").unlink()
    store.touch(make_key().name, 70)
    assert store.files()[0].used_s == path.stat().st_mtime


def test_a_mark_counts_for_this_boot_and_this_file_only(tmp_path: Path):
    store = StoreDirectory(tmp_path, boot_id="boot-1")
    path, name = write_file(store), make_key().name
    assert not store.is_verified(name, path.stat())
    store.mark_verified(name, path.stat())
    assert store.is_verified(name, path.stat())
    assert not StoreDirectory(tmp_path, boot_id="boot-2").is_verified(name, path.stat())
    flip(path, 5000)
    os.utime(path, ns=(1, 1))
    assert not store.is_verified(name, path.stat())
    write_file(store)
    assert not store.is_verified(name, path.stat())


def test_the_running_system_has_a_boot_id(tmp_path: Path):
    path, name = write_file(StoreDirectory(tmp_path)), make_key().name
    StoreDirectory(tmp_path).mark_verified(name, path.stat())
    assert StoreDirectory(tmp_path).is_verified(name, path.stat())


def test_a_damaged_file_is_moved_aside_with_its_mark(tmp_path: Path):
    store = StoreDirectory(tmp_path)
    path, name = write_file(store), make_key().name
    store.mark_verified(name, path.stat())
    store.quarantine(name, path.stat())
    assert names(store) == []
    assert sorted(each.suffix for each in tmp_path.iterdir()) == [".corrupt", ".lock"]


def test_a_good_file_that_took_the_damaged_ones_place_is_left_alone(tmp_path: Path):
    store = StoreDirectory(tmp_path)
    path, name = write_file(store), make_key().name
    with path.open("rb") as damaged:
        write_file(store)
        store.quarantine(name, os.fstat(damaged.fileno()))
    assert names(store) == [name]
    path.unlink()
    store.quarantine(name, os.stat(tmp_path))
    assert names(store) == []


def test_leftovers_go_and_files_and_living_drafts_stay(tmp_path: Path):
    store = StoreDirectory(tmp_path, boot_id="b")
    kept, damaged, evicted = write_files(store, 1, 2, 3)
    store.quarantine(damaged, store.finished(damaged).stat())
    for name in (kept, evicted):
        store.mark_verified(name, store.finished(name).stat())
    store.finished(evicted).unlink()
    dead, alive = hold_draft(tmp_path, "dead"), hold_draft(tmp_path, "alive")
    dead.kill()
    dead.communicate()
    removed = {path.name for path in store.remove_leftovers()}
    assert removed == {f"{damaged}.corrupt", f"{evicted}.verified", ".dead.draft"}
    assert names(store) == [kept]
    assert store.draft("alive").exists()
    assert store.is_verified(kept, store.finished(kept).stat())
    alive.communicate("")
    assert store.remove_leftovers() == [store.draft("alive")]


def test_the_next_maker_finds_nothing_of_a_killed_one(tmp_path: Path):
    process = hold_draft(tmp_path, "m")
    process.kill()
    process.communicate()
    store = StoreDirectory(tmp_path)
    assert store.draft("m").exists()
    with store.maker_lock("m"):
        assert not store.draft("m").exists()


def test_makers_of_one_file_wait_for_each_other(tmp_path: Path):
    first = hold_draft(tmp_path, "m")
    second = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path), "m"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )
    other = hold_draft(tmp_path, "another")
    assert second.poll() is None
    first.communicate("")
    assert second.communicate()[0] == "holding\n"
    other.communicate("")
