"""Versions of a model are told apart by what they compute, not by where their files lie."""

import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from rtp_serve.clock import WallClock
from rtp_serve.config.engine import EngineConfig, ModelSource
from rtp_serve.engine.version import ModelVersion
from rtp_serve.loader.hub import resolve
from rtp_serve.ops.dispatch import Backend, backend
from rtp_serve.worker.model_versions import ModelVersions
from tests.checkpoints import tiny_config, write_checkpoint
from tests.unit.loader.gguf_files import tiny_gguf

OFF: dict[str, Any] = {"enable": False}


def versions(directory: Path, store: dict[str, Any], **options: Any) -> ModelVersions:
    values = {"model": str(directory), "cache": {"num_blocks": 32}, "weight_store": store}
    return ModelVersions(EngineConfig.model_validate(values | options), WallClock())


def load(directory: Path, store: dict[str, Any] = OFF, **options: Any) -> ModelVersion:
    """As a process does that has nothing yet; its file in the store is finished then."""
    version, loaded = versions(directory, store, **options).load()
    assert loaded is not None
    loaded.guard.wait()
    return version


def namespace(directory: Path, store: dict[str, Any] = OFF, **options: Any) -> bytes:
    return load(directory, store, **options).namespace


@pytest.fixture
def first(tmp_path: Path) -> Path:
    return write_checkpoint(tmp_path / "first", num_shards=2)


@pytest.fixture
def copy(first: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(first, tmp_path / "copy"))


def test_copies_in_different_directories_share_their_blocks(first: Path, copy: Path):
    assert namespace(first) == namespace(copy)
    assert load(first).model.fingerprint == load(copy).model.fingerprint


@pytest.mark.skipif(backend() is Backend.REFERENCE, reason="weights are not packed")
def test_nodes_with_stores_and_copies_of_their_own_share_their_blocks(
    first: Path, copy: Path, tmp_path: Path
):
    stores = [{"directory": str(tmp_path / name)} for name in ("a", "b")]
    read_and_mapped = [namespace(first, stores[0]) for _ in range(2)]
    read_and_mapped += [namespace(copy, stores[1]) for _ in range(2)]
    assert {*read_and_mapped} == {namespace(first)}


def test_others_with_equal_names_sizes_and_times_share_none(first: Path, tmp_path: Path):
    other = write_checkpoint(tmp_path / "other", num_shards=2, seed=1)
    for file in first.iterdir():
        status = file.stat()
        os.utime(other / file.name, ns=(status.st_atime_ns, status.st_mtime_ns))
        found = (other / file.name).stat()
        assert (found.st_size, found.st_mtime_ns) == (status.st_size, status.st_mtime_ns)
    assert namespace(first) != namespace(other)


def test_equal_weights_that_compute_otherwise_share_none(first: Path, tmp_path: Path):
    config = tiny_config() | {"rms_norm_eps": 1e-3}
    other = write_checkpoint(tmp_path / "other", config, num_shards=2)
    assert namespace(first) != namespace(other)
    assert namespace(first) != namespace(first, dtype="bfloat16")


def test_content_is_of_weights_and_model_and_not_of_the_memory(first: Path, copy: Path):
    content = load(first).model.content
    assert load(copy, cache={"num_blocks": 64}).model.content == content
    config = tiny_config() | {"rope_theta": 5e5}
    assert load(write_checkpoint(copy, config, num_shards=2)).model.content != content
    assert load(write_checkpoint(copy, num_shards=2, seed=1)).model.content != content
    assert load(first, dtype="bfloat16").model.content != content


@pytest.mark.skipif(backend() is Backend.REFERENCE, reason="weights are not packed")
def test_what_is_mapped_has_the_content_of_what_was_read(first: Path, tmp_path: Path):
    store = {"directory": str(tmp_path / "store")}
    assert {load(first, store).model.content for _ in range(2)} == {load(first).model.content}


def test_copies_of_a_gguf_file_share_their_blocks(tmp_path: Path):
    """Converted on two nodes."""
    path = tiny_gguf(tmp_path / "tiny.gguf")
    other = Path(shutil.copy(path, tmp_path / "other.gguf"))
    first, second = (resolve(str(each), cache=tmp_path / each.stem) for each in (path, other))
    assert first != second
    assert namespace(first) == namespace(second)
    changed = resolve(str(tiny_gguf(tmp_path / "changed.gguf", "qwen2")), cache=tmp_path / "third")
    assert namespace(changed) != namespace(first)


def test_a_copy_is_no_new_version_and_new_weights_are(first: Path, copy: Path):
    served = versions(first, OFF)
    version, loaded = served.load()
    assert loaded is not None
    assert served.load() == (version, None)
    assert served.load(ModelSource(model=str(copy))) == (version, None)
    os.chmod(copy / "model-00001-of-00002.safetensors", 0o600)
    assert served.load() == (version, None)
    write_checkpoint(copy, num_shards=2, seed=1)
    changed, loaded = served.load()
    assert loaded is not None
    assert changed.number == version.number + 1
    assert changed.namespace != version.namespace
