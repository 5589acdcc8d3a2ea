import json
import os
import struct
from collections.abc import Callable
from pathlib import Path

import pytest

from rtp_serve.loader.stamp import checkpoint_stamp


def write_shard(path: Path, name: str = "w", data: bytes = b"1234") -> Path:
    shape = [len(data) // 2]
    header = {name: {"dtype": "BF16", "shape": shape, "data_offsets": [0, len(data)]}}
    encoded = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(encoded)) + encoded + data)
    return path


def rewrite_in_place(path: Path) -> None:
    """As a careful program would that wants to go unnoticed: size and times stay."""
    before = path.stat()
    with path.open("r+b") as file:
        file.seek(-4, os.SEEK_END)
        file.write(b"4321")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def test_an_untouched_checkpoint_keeps_its_stamp(tmp_path: Path):
    write_shard(tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text("{}")
    before = checkpoint_stamp(tmp_path)
    assert before is not None
    (tmp_path / "model.safetensors").read_bytes()
    (tmp_path / "config.json").write_text('{"not": "weights"}')
    assert checkpoint_stamp(tmp_path) == before


@pytest.mark.parametrize(
    "change",
    [
        rewrite_in_place,
        lambda path: write_shard(path, data=b"12345678"),
        lambda path: write_shard(path, name="v"),
        lambda path: path.rename(path.with_name("other.safetensors")),
        lambda path: write_shard(path.with_name("more.safetensors")),
        lambda path: path.with_name("model.safetensors.index.json").write_text("{}"),
        lambda path: write_shard(path.with_name("new")).replace(path),
    ],
    ids=["in place", "longer", "header", "renamed", "one more", "index", "replaced"],
)
def test_every_change_of_the_weight_files_changes_the_stamp(
    tmp_path: Path, change: Callable[[Path], object]
):
    path = write_shard(tmp_path / "model.safetensors")
    before = checkpoint_stamp(tmp_path)
    change(path)
    assert checkpoint_stamp(tmp_path) != before


def test_a_link_to_the_same_files_is_the_same_checkpoint(tmp_path: Path):
    """As in the Hugging Face cache, where a snapshot is links to blobs."""
    (tmp_path / "first").mkdir()
    path = write_shard(tmp_path / "first" / "model.safetensors")
    (tmp_path / "second").mkdir()
    (tmp_path / "second" / "model.safetensors").symlink_to(path)
    stamp = checkpoint_stamp(tmp_path / "first")
    assert stamp == checkpoint_stamp(tmp_path / "second")


def test_what_is_no_checkpoint_has_no_stamp(tmp_path: Path):
    assert checkpoint_stamp(tmp_path) is None
    assert checkpoint_stamp(tmp_path / "missing") is None
    (tmp_path / "model.safetensors").mkdir()
    assert checkpoint_stamp(tmp_path) is None


@pytest.mark.parametrize("content", [b"", b"1234", b"\xff" * 8, b"\xff" * 40])
def test_a_broken_header_has_a_stamp_too(tmp_path: Path, content: bytes):
    (tmp_path / "model.safetensors").write_bytes(content)
    assert checkpoint_stamp(tmp_path) is not None
