"""Weights from the store are the checkpoint's, bit for bit, or they are not used."""

import errno
import fcntl
import logging
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from rtp_serve.clock import VirtualClock
from rtp_serve.config.model import read_model_config
from rtp_serve.errors import CorruptWeights
from rtp_serve.loader.cache import locked
from rtp_serve.loader.checkpoint import Checkpoint
from rtp_serve.loader.store.directory import StoreDirectory
from rtp_serve.loader.store.format import read_header
from rtp_serve.loader.store.payload import FileIO
from rtp_serve.loader.store.store import Wanted, WeightStore
from rtp_serve.loader.weights import LoadedWeights, load_weights
from rtp_serve.models.registry import MODELS
from rtp_serve.models.weights import Weights
from rtp_serve.ops import as_tensor, dtype_name
from rtp_serve.ops.dispatch import Backend, backend
from tests.checkpoints import tiny_config, write_checkpoint
from tests.unit.loader.store_files import flip

pytestmark = pytest.mark.skipif(backend() is Backend.REFERENCE, reason="weights are not packed")

ROOT = Path(__file__).parents[2]
LARGE = 1 << 30


class Node:
    """A checkpoint and the store of the machine it is on."""

    def __init__(self, checkpoint: Path, root: Path) -> None:
        self.checkpoint = checkpoint
        self.root = root
        self.num_reads = 0

    def store(
        self,
        io: FileIO | None = None,
        max_bytes: int = LARGE,
        boot_id: str = "boot",
        now_s: float = 0,
    ) -> WeightStore:
        directory = StoreDirectory(self.root, boot_id)
        return WeightStore(directory, max_bytes, VirtualClock(now_s), io)

    def wanted(self, dtype: torch.dtype = torch.bfloat16) -> Wanted:
        config = read_model_config(self.checkpoint)
        specs = MODELS.load(config.architecture).weight_specs(config)
        return Wanted(self.checkpoint, config.architecture, specs, dtype_name(dtype))

    def read(self, dtype: torch.dtype = torch.bfloat16) -> LoadedWeights:
        self.num_reads += 1
        config = read_model_config(self.checkpoint)
        return load_weights(Checkpoint(self.checkpoint), self.wanted().specs, config, dtype)

    def start(
        self, store: WeightStore | None = None, dtype: torch.dtype = torch.bfloat16
    ) -> Weights:
        """What a replica does; it is given time to finish its work on the store."""
        store = store or self.store()
        loaded = store.get(self.wanted(dtype), lambda: self.read(dtype))
        store.guard.wait()
        return loaded.weights

    def file(self) -> Path:
        (path,) = self.root.glob("*.weights")
        return path

    def suffixes(self) -> list[str]:
        """Of all but locks and notes."""
        kinds = {path: path.suffix for path in self.root.iterdir()}
        return sorted(kind for kind in kinds.values() if kind not in (".lock", ".source"))


def make_node(tmp_path: Path, architecture: str = "Qwen2ForCausalLM", seed: int = 0) -> Node:
    checkpoint = write_checkpoint(tmp_path / "model", tiny_config(architecture), seed=seed)
    return Node(checkpoint, tmp_path / "store")


@pytest.fixture
def node(tmp_path: Path) -> Node:
    return make_node(tmp_path)


def assert_equal(first: Weights, second: Weights, node: Node) -> None:
    for spec in node.wanted().specs:
        if not spec.is_matrix:
            vectors = [as_tensor(weights.vector(spec.path)) for weights in (first, second)]
            assert torch.equal(*vectors)
            continue
        left, right = first.matrix(spec.path), second.matrix(spec.path)
        assert torch.equal(left.data, right.data)
        assert (left.num_rows, left.num_cols) == (right.num_rows, right.num_cols)
        assert (left.bias is None) == (right.bias is None) == (not spec.biases)
        if left.bias is not None and right.bias is not None:
            assert torch.equal(as_tensor(left.bias), as_tensor(right.bias))


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


def cut(share: float) -> Callable[[Path], None]:
    def damage(path: Path) -> None:
        os.truncate(path, int(path.stat().st_size * share))

    return damage


def relabel(path: Path) -> None:
    """Another key in a file that is whole: the name stays."""
    descriptor = os.open(path, os.O_RDONLY)
    source = read_header(descriptor).key.checkpoint
    os.close(descriptor)
    other = path.parent / "other"
    clone = make_node(other, seed=1)
    clone.start()
    assert clone.file().read_bytes().find(source.encode()) == -1
    clone.file().replace(path)


@pytest.mark.parametrize(
    "damage",
    [
        *map(cut, (0, 0.001, 0.3, 0.9, 0.9999)),
        lambda path: flip(path, 9),
        lambda path: flip(path, 200),
        relabel,
    ],
    ids=["empty", "preamble", "third", "most", "almost", "version", "header", "foreign key"],
)
def test_a_file_damaged_before_it_is_mapped_is_moved_aside_and_made_again(
    node: Node, damage: Callable[[Path], None], caplog: pytest.LogCaptureFixture
):
    node.start()
    damage(node.file())
    store = node.store()
    weights = node.start(store)
    store.guard.check()
    assert node.num_reads == 2
    assert [suffix for suffix in node.suffixes() if suffix] == [".corrupt", ".verified", ".weights"]
    assert_equal(weights, node.read().weights, node)
    assert len(caplog.records) == 1
    assert re.search(r"weight store: .*; loading the checkpoint", caplog.text)


def test_the_payload_is_checked_once_a_boot(node: Node):
    node.start()
    damage_payload(node)
    same_boot, next_boot = node.store(), node.store(boot_id="next")
    node.start(same_boot)
    same_boot.guard.check()  # that is the limit of checking once
    node.start(next_boot)
    with pytest.raises(CorruptWeights, match=r"\.weights: .* has another digest"):
        next_boot.guard.check()


def test_a_checked_file_is_not_checked_again(node: Node):
    node.start()
    node.start(node.store(boot_id="next"))
    damage_payload(node)
    again = node.store(boot_id="next")
    node.start(again)
    again.guard.check()


def damage_payload(node: Node) -> None:
    """As a disk would: nothing tells that the file has changed."""
    before = node.file().stat()
    flip(node.file(), before.st_size // 2)
    os.utime(node.file(), ns=(before.st_atime_ns, before.st_mtime_ns))


def test_a_running_replica_with_a_damaged_file_stops_and_the_next_reads_the_checkpoint(node: Node):
    node.start()
    damage_payload(node)
    running, together = node.store(boot_id="next"), node.store(boot_id="next")
    with locked(os.open(node.file(), os.O_RDONLY), fcntl.LOCK_EX):  # neither is checked yet
        for store in (running, together):
            store.get(node.wanted(), node.read)
            store.guard.check()
    for store in (running, together):
        store.guard.wait()
        with pytest.raises(CorruptWeights):
            store.guard.check()
    assert ".corrupt" in node.suffixes()
    replacement = node.store(boot_id="next")
    weights = node.start(replacement)
    replacement.guard.check()
    assert node.num_reads == 2
    assert_equal(weights, node.read().weights, node)


def test_a_write_to_the_file_is_noticed_in_the_same_boot(node: Node):
    node.start()
    flip(node.file(), node.file().stat().st_size // 2)
    os.utime(node.file(), ns=(1, 1))
    store = node.store()
    node.start(store)
    with pytest.raises(CorruptWeights):
        store.guard.check()


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
