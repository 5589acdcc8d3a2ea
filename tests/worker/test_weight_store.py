"""Weights from the store are the checkpoint's, bit for bit, or they are not used."""

import errno
import logging
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from rtp_serve.clock import VirtualClock
from rtp_serve.loader.store.directory import StoreDirectory
from rtp_serve.loader.store.payload import FileIO
from rtp_serve.loader.store.store import WeightStore
from rtp_serve.loader.weights import LoadedWeights
from rtp_serve.ops.dispatch import Backend, backend
from tests.unit.loader.store_files import flip
from tests.worker.store_node import LARGE, Node, assert_equal, damage_payload, make_node

pytestmark = pytest.mark.skipif(backend() is Backend.REFERENCE, reason="weights are not packed")

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize(
    "architecture", ["LlamaForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM"]
)
def test_written_and_mapped_weights_equal_the_loaded_ones(
    tmp_path: Path, architecture: str, dtype: torch.dtype
):
    node = make_node(tmp_path, architecture)
    loaded = node.read(dtype).weights
    assert_equal(node.start(dtype=dtype), loaded, node)
    assert_equal(node.start(dtype=dtype), loaded, node)
    assert node.num_reads == 2  # by this test, and by the first replica


def test_the_first_replica_maps_what_it_has_written(node: Node):
    weights = node.start()
    assert node.suffixes() == [".verified", ".weights"]
    assert str(node.file()) in Path("/proc/self/maps").read_text()
    assert weights


def test_types_have_files_of_their_own(node: Node):
    node.start(dtype=torch.bfloat16)
    node.start(dtype=torch.float32)
    assert node.suffixes().count(".weights") == 2


def test_a_mapping_outlives_its_file(node: Node):
    loaded = node.read().weights
    weights = node.start()
    node.file().unlink()
    assert_equal(weights, loaded, node)


def test_a_checkpoint_that_changed_is_read_again(node: Node):
    node.start()
    path = node.checkpoint / "model.safetensors"
    before = path.stat()
    flip(path, before.st_size - 10)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    weights = node.start()
    assert node.num_reads == 2
    assert node.suffixes().count(".weights") == 2
    assert_equal(weights, node.read().weights, node)


def copy_of(node: Node, tmp_path: Path) -> Node:
    """Another checkpoint with the same content, over the same store."""
    return Node(Path(shutil.copytree(node.checkpoint, tmp_path / "copy")), node.root)


def test_a_copy_is_read_once_and_has_the_file_that_is_there(node: Node, tmp_path: Path):
    loaded = node.start()
    made = node.file().stat()
    copy = copy_of(node, tmp_path)
    assert_equal(copy.start(), loaded, node)
    assert str(node.file()) in Path("/proc/self/maps").read_text()
    copy.start()
    assert copy.num_reads == 1
    assert copy.file().stat().st_mtime_ns == made.st_mtime_ns


def test_copies_that_start_together_write_one_file(node: Node, tmp_path: Path):
    copy = copy_of(node, tmp_path)
    replicas = [run_replica(each, 1000) for each in (node, copy)]
    assert [int(replica.communicate()[0]) for replica in replicas] == [1, 1]
    assert node.suffixes() == [".verified", ".weights"]
    node.start()
    copy.start()
    assert node.num_reads == copy.num_reads == 0


def test_what_is_mapped_has_the_identity_of_what_was_read(node: Node):
    read = node.read()
    written, mapped = (node.store().get(node.wanted(), node.read) for _ in range(2))
    assert written.identity == mapped.identity == read.identity


@pytest.mark.parametrize("note", ["", "../../etc/passwd", "0123"], ids=["empty", "path", "gone"])
def test_a_note_that_leads_nowhere_costs_reading(node: Node, note: str):
    loaded = node.start()
    (source,) = node.root.glob("*.source")
    source.write_text(note)
    assert_equal(node.start(), loaded, node)
    assert node.num_reads == 2
    node.start()
    assert node.num_reads == 2


def test_a_note_to_a_file_of_another_type_costs_reading(
    node: Node, caplog: pytest.LogCaptureFixture
):
    node.start(dtype=torch.float32)
    (other,) = node.root.glob("*.source")
    node.start()
    (source,) = set(node.root.glob("*.source")) - {other}
    source.write_text(other.read_text())
    assert_equal(node.start(), node.read().weights, node)
    assert "noted for other weights" in caplog.text
    assert node.suffixes() == [".verified", ".verified", ".weights", ".weights"]


def test_a_checkpoint_that_changes_while_it_is_read_is_not_kept(
    node: Node, caplog: pytest.LogCaptureFixture
):
    def read() -> LoadedWeights:
        loaded = node.read()
        flip(node.checkpoint / "model.safetensors", 2000)
        return loaded

    node.store().get(node.wanted(), read)
    assert node.suffixes() == []
    assert "changed while it was read" in caplog.text


def no_space(*_: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def bad_disk(*_: object) -> int:
    raise OSError(errno.EIO, "Input/output error")


@pytest.mark.parametrize(
    ("io", "said"),
    [
        (FileIO(reserve=no_space), "not written: .*No space left"),
        (FileIO(write=bad_disk), "not written: .*Input/output error"),
        (FileIO(sync=bad_disk), "not written: .*Input/output error"),
    ],
)
def test_a_file_that_cannot_be_written_costs_one_warning(
    node: Node, io: FileIO, said: str, caplog: pytest.LogCaptureFixture
):
    store = node.store(io)
    weights = node.start(store)
    store.guard.check()
    assert_equal(weights, node.read().weights, node)
    assert node.suffixes() == []
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    assert re.search(said, caplog.text)


def test_weights_that_the_disk_refused_are_not_mapped(node: Node):
    """After a failed sync the system may have dropped what it could not write."""
    weights = node.start(node.store(FileIO(sync=bad_disk)))
    assert str(node.root) not in Path("/proc/self/maps").read_text()
    assert weights


def test_a_file_that_cannot_be_finished_costs_one_warning(
    node: Node, caplog: pytest.LogCaptureFixture
):
    num_syncs = 0

    def sync_once(descriptor: int) -> None:
        nonlocal num_syncs
        num_syncs += 1
        if num_syncs > 1:
            bad_disk()

    store = node.store(FileIO(sync=sync_once))
    weights = node.start(store)
    store.guard.check()
    assert_equal(weights, node.read().weights, node)
    assert node.suffixes() == []
    assert "weight store: not written: " in caplog.text
    assert len(caplog.records) == 1


def test_a_store_that_cannot_be_a_directory_costs_one_warning(
    node: Node, caplog: pytest.LogCaptureFixture
):
    node.root.write_text("a file")
    assert_equal(node.start(), node.read().weights, node)
    assert len(caplog.records) == 1
    assert "weight store: not used: " in caplog.text


def test_a_store_too_small_for_a_model_keeps_what_it_has(
    node: Node, caplog: pytest.LogCaptureFixture
):
    node.start()
    size = node.file().stat().st_size
    node.start(node.store(max_bytes=size), dtype=torch.float32)
    assert node.suffixes() == [".verified", ".weights"]
    assert "more than weight_store.max_size" in caplog.text


def test_the_longest_unused_file_makes_room(node: Node, tmp_path: Path):
    def start(other: Node, now_s: float, max_bytes: int = LARGE) -> str:
        store = WeightStore(StoreDirectory(node.root, "boot"), max_bytes, VirtualClock(now_s))
        other.start(store)
        return other.wanted().key(other.read().identity).name

    others = [make_node(tmp_path / str(index), seed=index) for index in range(3)]
    first = start(others[0], 100)
    size = node.file().stat().st_size
    second = start(others[1], 200)
    start(others[0], 300)
    third = start(others[2], 400, max_bytes=2 * size)
    files = StoreDirectory(node.root).files()
    assert [file.name for file in files] == [first, third]
    assert second not in {file.name for file in files}


CRASH = """
import os, sys
from pathlib import Path
from rtp_serve.loader.store.payload import FileIO
from tests.worker.test_weight_store import Node

writes_left = int(sys.argv[3])

def write(descriptor, buffer, position):
    global writes_left
    writes_left -= 1
    if writes_left < 0:
        os._exit(7)
    return os.pwrite(descriptor, buffer, position)

node = Node(Path(sys.argv[1]), Path(sys.argv[2]))
weights = node.start(node.store(FileIO(write=write)))
print(node.num_reads)
"""
NUM_TENSORS = 1 + 3 * 7 + 2
"""The writes of a file's payload; the header is one more."""


def run_replica(node: Node, num_writes: int) -> subprocess.Popen[str]:
    """Another process, which ends without a word when it has written that often."""
    arguments = [str(node.checkpoint), str(node.root), str(num_writes)]
    return subprocess.Popen(
        [sys.executable, "-c", CRASH, *arguments], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )


@pytest.mark.parametrize("num_writes", [0, 5, NUM_TENSORS])
def test_a_crash_while_writing_leaves_a_draft_that_nobody_takes(node: Node, num_writes: int):
    crashed = run_replica(node, num_writes)
    crashed.communicate()
    assert crashed.returncode == 7
    assert node.suffixes() == [".draft"]
    weights = node.start()
    assert node.suffixes() == [".verified", ".weights"]
    assert_equal(weights, node.read().weights, node)


def test_replicas_that_start_together_read_the_checkpoint_once(node: Node):
    replicas = [run_replica(node, 1000) for _ in range(3)]
    reads = sorted(int(replica.communicate()[0]) for replica in replicas)
    assert reads == [0, 0, 1]
    assert node.suffixes() == [".verified", ".weights"]


def test_a_store_that_cannot_be_written_is_checked_before_it_is_used(
    node: Node, monkeypatch: pytest.MonkeyPatch
):
    node.start()
    damage_payload(node)
    as_for_another_user(monkeypatch)
    store = node.store(boot_id="next")
    weights = store.get(node.wanted(), node.read).weights
    assert node.num_reads == 2
    assert_equal(weights, node.read().weights, node)


def as_for_another_user(monkeypatch: pytest.MonkeyPatch) -> None:
    """The system's answer for a read-only directory; it denies root nothing."""

    def access(path: Path, mode: int, **_: object) -> bool:
        return mode != os.W_OK

    monkeypatch.setattr(os, "access", access)
