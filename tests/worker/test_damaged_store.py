"""A damaged file of the weight store costs a reading of the checkpoint, and no wrong bit."""

import fcntl
import os
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from rtp_serve.errors import CorruptWeights
from rtp_serve.loader.cache import locked
from rtp_serve.loader.store.format import read_header
from rtp_serve.ops.dispatch import Backend, backend
from tests.unit.loader.store_files import flip
from tests.worker.store_node import Node, assert_equal, damage_payload, make_node

pytestmark = pytest.mark.skipif(backend() is Backend.REFERENCE, reason="weights are not packed")


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
