"""From the files to the model's weights: the bits that loading tensor by tensor would give."""

import json
import logging
import os
import struct
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from rtp_serve import ops
from rtp_serve.clock import VirtualClock
from rtp_serve.config.model import read_model_config
from rtp_serve.errors import CheckpointError
from rtp_serve.loader.checkpoint import Checkpoint
from rtp_serve.loader.local_files import LocalFiles
from rtp_serve.loader.read_plan import ALIGNMENT, ReadSizes
from rtp_serve.loader.weights import DEFAULT_SETTINGS, LoadSettings, load_weights
from rtp_serve.models.registry import MODELS
from rtp_serve.models.weights import TensorSpec, Weights, WeightSpec, matrix, vector
from tests.checkpoints import tiny_config, write_checkpoint

BF16, F16, F32 = torch.bfloat16, torch.float16, torch.float32
SMALL = ReadSizes(read_bytes=ALIGNMENT, gap_bytes=0)
ROOT = Path(__file__).parents[2]


def specs_of(directory: Path) -> tuple[WeightSpec, ...]:
    config = read_model_config(directory)
    return MODELS.load(config.architecture).weight_specs(config)


def load(
    directory: Path,
    dtype: torch.dtype = F32,
    settings: LoadSettings = DEFAULT_SETTINGS,
    specs: Sequence[WeightSpec] | None = None,
) -> Weights:
    config = read_model_config(directory)
    specs = specs_of(directory) if specs is None else specs
    return load_weights(Checkpoint(directory), specs, config, dtype, settings=settings).weights


def by_library(directory: Path) -> dict[str, Tensor]:
    """Every tensor of the directory, as safetensors reads it."""
    found = {}
    for file in directory.glob("*.safetensors"):
        with safe_open(file, framework="pt") as handle:
            found |= {name: handle.get_tensor(name) for name in handle.keys()}  # noqa: SIM118
    return found


def assert_loaded(
    weights: Weights, specs: Sequence[WeightSpec], directory: Path, dtype: torch.dtype
) -> None:
    """Each weight is its tensors converted, stacked and packed, one at a time and whole."""
    tensors = by_library(directory)

    def stacked(parts: Sequence[TensorSpec]) -> Tensor:
        return torch.cat([tensors[part.name].to(dtype) for part in parts])

    for spec in specs:
        if not spec.is_matrix:
            assert torch.equal(weights.vector(spec.path), stacked(spec.parts)), spec.path
            continue
        expected = ops.pack_weight(
            stacked(spec.parts), stacked(spec.biases) if spec.biases else None
        )
        found = weights.matrix(spec.path)
        assert torch.equal(found.data.view(torch.uint8), expected.data.view(torch.uint8)), spec.path
        assert (found.num_rows, found.num_cols) == (expected.num_rows, expected.num_cols)
        assert (found.bias is None) == (expected.bias is None)
        assert expected.bias is None or torch.equal(found.bias, expected.bias)


@pytest.mark.parametrize("architecture", ["LlamaForCausalLM", "Qwen2ForCausalLM"])
@pytest.mark.parametrize("stored", [F16, BF16, F32])
@pytest.mark.parametrize("computed", [BF16, F32])
def test_weights_are_those_of_loading_tensor_by_tensor(
    tmp_path: Path, architecture: str, stored: torch.dtype, computed: torch.dtype
):
    directory = write_checkpoint(tmp_path, tiny_config(architecture), num_shards=3, dtype=stored)
    for settings in (DEFAULT_SETTINGS, LoadSettings(SMALL, num_threads=4)):
        weights = load(directory, computed, settings)
        assert_loaded(weights, specs_of(directory), directory, computed)


@pytest.mark.parametrize("stored", [BF16, F32])
def test_loading_in_inference_mode_gives_the_same(tmp_path: Path, stored: torch.dtype):
    directory = write_checkpoint(tmp_path, tiny_config("Qwen2ForCausalLM"), dtype=stored)
    with torch.inference_mode():
        assert_loaded(load(directory, BF16), specs_of(directory), directory, BF16)
    weights = load(directory, BF16)
    assert not weights.vector("norm").is_inference()
    assert_loaded(weights, specs_of(directory), directory, BF16)


def test_every_architecture_loads_the_same_bits(tmp_path: Path):
    for name in MODELS:
        directory = write_checkpoint(tmp_path / name, tiny_config(name), dtype=BF16)
        assert_loaded(load(directory, BF16), specs_of(directory), directory, BF16)


def test_a_large_tensor_comes_with_several_reads(tmp_path: Path):
    config = tiny_config(hidden_size=256, vocab_size=3001)
    directory = write_checkpoint(tmp_path, config, dtype=F32)
    settings = LoadSettings(ReadSizes(read_bytes=64 << 10), num_threads=3)
    assert_loaded(load(directory, BF16, settings), specs_of(directory), directory, BF16)


def test_a_tensor_that_two_weights_want_is_read_once_and_given_to_both(tmp_path: Path):
    directory = write_checkpoint(tmp_path, tiny_config())
    specs = [
        matrix("first", {"model.embed_tokens": 256}, 64),
        matrix("both", {"lm_head": 256, "model.embed_tokens": 256}, 64),
        vector("norm", "model.norm", 64),
    ]
    weights = load(directory, F32, LoadSettings(SMALL), specs)
    assert_loaded(weights, specs, directory, F32)


def test_a_header_of_odd_length_puts_tensors_at_odd_addresses(tmp_path: Path):
    directory = write_checkpoint(tmp_path, dtype=BF16)
    path = directory / "model.safetensors"
    content = path.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    expected = {name: tensor.clone() for name, tensor in load_file(path).items()}
    header = json.dumps(json.loads(content[8 : 8 + length])).encode()
    header += b" " * (1 - len(header) % 2)
    path.write_bytes(struct.pack("<Q", len(header)) + header + content[8 + length :])
    assert len(header) % 2 == 1
    weights = load(directory, BF16)
    assert torch.equal(weights.vector("norm"), expected["model.norm.weight"])
    packed = ops.pack_weight(expected["model.embed_tokens.weight"])
    assert torch.equal(weights.matrix("embedding").data, packed.data)


class BrokenStore:
    """The files of this machine, but for one that cannot be read beyond a byte."""

    def __init__(self, file: str, offset: int, files: LocalFiles) -> None:
        self._file, self._offset, self._files = file, offset, files

    def __call__(self, file: Path, offset: int, into: memoryview) -> int:
        if file.name == self._file and offset >= self._offset:
            raise OSError(5, "Input/output error")
        return self._files(file, offset, into)


def test_a_file_that_cannot_be_read_is_one_error(tmp_path: Path):
    directory = write_checkpoint(tmp_path, num_shards=3)
    name = "model-00002-of-00003.safetensors"
    with LocalFiles() as files:
        settings = LoadSettings(SMALL, read_into=BrokenStore(name, ALIGNMENT, files))
        with pytest.raises(CheckpointError, match=rf"cannot read .*{name}: .*Input/output error"):
            load(directory, F32, settings)


def test_a_file_that_shrinks_after_its_header_was_read_is_an_error(tmp_path: Path):
    directory = write_checkpoint(tmp_path)
    checkpoint, config = Checkpoint(directory), read_model_config(directory)
    os.truncate(directory / "model.safetensors", 50_000)
    with pytest.raises(CheckpointError, match="has changed meanwhile"):
        load_weights(checkpoint, specs_of(directory), config, F32)


def test_where_the_time_went_is_one_line_of_the_log(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    directory = write_checkpoint(tmp_path)
    with caplog.at_level(logging.INFO, logger="rtp_serve.loader.weights"):
        load(directory, F32, LoadSettings(clock=VirtualClock()))
    (record,) = caplog.records
    assert f"{directory}: loaded 0.00 GB in 0.00 s" in record.getMessage()
    assert "1 reads" in record.getMessage()


_REFERENCE = """
import sys
from pathlib import Path
import torch
from tests.worker.test_weight_loading import by_library, load
weights, tensors = load(Path(sys.argv[1]), torch.bfloat16), by_library(Path(sys.argv[1]))
embedding = weights.matrix("embedding")
assert embedding.kernel is None
assert torch.equal(embedding.data, tensors["model.embed_tokens.weight"].bfloat16())
"""


def test_the_reference_gets_plain_weights(tmp_path: Path):
    subprocess.run(
        [sys.executable, "-c", _REFERENCE, write_checkpoint(tmp_path)],
        env={**os.environ, "RTP_SERVE_OPS": "reference"},
        cwd=ROOT,
        check=True,
    )
