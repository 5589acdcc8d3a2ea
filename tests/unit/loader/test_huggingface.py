"""The Hub library is replaced where it would use the network; its filter and errors are real."""

import sys
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub import errors
from huggingface_hub.utils import filter_repo_objects

from rtp_serve.errors import CheckpointError, ModelNotFound
from rtp_serve.loader.hub import resolve

REPOSITORY = [
    "README.md",
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "model-00001-of-00002.safetensors",
    "model-00002-of-00002.safetensors",
    "model.safetensors.index.json",
    "consolidated.safetensors",
    "original/model.safetensors",
    "onnx/config.json",
    "pytorch_model.bin",
    "modeling_custom.py",
    "model.gguf",
]
WEIGHTS = {
    "model-00001-of-00002.safetensors",
    "model-00002-of-00002.safetensors",
    "model.safetensors.index.json",
}


class FakeHub:
    """Stands in for `snapshot_download`: remembers what it was asked for, or fails."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.error: Exception | None = None
        self.asked: list[tuple[str, str | None]] = []
        self.fetched: set[str] = set()

    def __call__(self, repo_id: str, *, revision: str | None, **patterns: Any) -> str:
        if self.error is not None:
            raise self.error
        self.asked.append((repo_id, revision))
        self.fetched = set(filter_repo_objects(REPOSITORY, **patterns))
        return str(self.directory)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeHub:
    fake = FakeHub(tmp_path)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", fake)
    return fake


def http_error(kind: type[errors.HfHubHTTPError]) -> errors.HfHubHTTPError:
    error = kind.__new__(kind)
    Exception.__init__(error, "404 Client Error")
    return error


def test_only_safetensors_configuration_and_tokenizer_are_fetched(hub: FakeHub):
    assert resolve("org/name", "v1") == hub.directory
    assert hub.asked == [("org/name", "v1")]
    whole = hub.fetched
    resolve("org/name", files="tokenizer")
    assert whole - hub.fetched == WEIGHTS
    assert hub.fetched == set(REPOSITORY[1:7])


@pytest.mark.parametrize("kind", [errors.RepositoryNotFoundError, errors.RevisionNotFoundError])
def test_a_missing_repository_or_revision_is_not_found(hub: FakeHub, kind: Any):
    hub.error = http_error(kind)
    with pytest.raises(
        ModelNotFound, match="no Hugging Face repository 'org/name' at revision 'v1'"
    ):
        resolve("org/name", "v1")


def test_a_gated_repository_says_what_to_do(hub: FakeHub):
    hub.error = http_error(errors.GatedRepoError)
    with pytest.raises(CheckpointError, match="gated: accept its terms and set HF_TOKEN"):
        resolve("org/name")


@pytest.mark.parametrize(
    "error",
    [
        errors.LocalEntryNotFoundError("outgoing traffic has been disabled"),
        errors.OfflineModeIsEnabled("offline"),
        errors.HTTPError("connection reset"),
        OSError(28, "No space left on device"),
    ],
)
def test_a_repository_out_of_reach_is_reported(hub: FakeHub, error: Exception):
    hub.error = error
    with pytest.raises(CheckpointError, match="'org/name' cannot be fetched and is not cached"):
        resolve("org/name")


def test_without_the_hub_library_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(CheckpointError, match=r"pip install 'rtp-serve\[hub\]'"):
        resolve("org/name")
