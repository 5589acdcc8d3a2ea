"""What loading leaves in memory: the packed weights, a tied one once, and nothing of the files."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.checkpoints import tiny_config, write_checkpoint
from tests.worker.engines import make_runner

_SPARE_BYTES = 2 << 20
"""Less than the embedding, and than what loading has in hand at a time."""

_RING_BYTES = 6 << 20
"""Of the staging ring below."""

_PEAK_PROGRAM = """
import sys
from pathlib import Path
import torch
from rtp_serve.loader.read_plan import ReadSizes
from rtp_serve.loader.weights import LoadSettings
from tests.worker.test_weight_loading import load

def bytes_of(name):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith(f"{name}:"))

settings = LoadSettings(ReadSizes(read_bytes=1 << 20), num_threads=6)
load(Path(sys.argv[1]), torch.bfloat16, settings)
before = bytes_of("VmRSS")
Path("/proc/self/clear_refs").write_text("5")
weights = load(Path(sys.argv[2]), torch.bfloat16, settings)
print(bytes_of("VmHWM") - before)
"""

_PROGRAM = """
import sys
from pathlib import Path
from tests.worker.engines import make_runner

def anonymous_bytes():
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith("Anonymous:"))

warm = make_runner(Path(sys.argv[1]), num_blocks=2, max_model_len=16, dtype="bfloat16")
before = anonymous_bytes()
runner = make_runner(Path(sys.argv[2]), num_blocks=2, max_model_len=16, dtype="bfloat16")
print(anonymous_bytes() - before)
"""


def test_a_process_grows_by_no_more_than_the_weights(tmp_path: Path):
    warm = write_checkpoint(tmp_path / "warm", dtype=torch.bfloat16)
    shape = {"hidden_size": 512, "intermediate_size": 4096, "vocab_size": 8192}
    config = tiny_config(**shape, tie_word_embeddings=True)
    directory = write_checkpoint(tmp_path / "large", config, dtype=torch.bfloat16)
    grown = run(_PROGRAM, warm, directory)
    weights = (directory / "model.safetensors").stat().st_size
    assert 0.75 * weights <= grown < weights + _SPARE_BYTES  # three quarters where they are coded


@pytest.mark.parametrize("stored", [torch.bfloat16, torch.float32])
def test_on_its_way_a_process_has_the_weights_and_the_staging_ring(
    tmp_path: Path, stored: torch.dtype
):
    warm = write_checkpoint(tmp_path / "warm", dtype=stored)
    config = tiny_config(hidden_size=512, intermediate_size=4096, vocab_size=32768)
    directory = write_checkpoint(tmp_path / "large", config, dtype=stored)
    stored_bytes = (directory / "model.safetensors").stat().st_size
    weights = stored_bytes * torch.bfloat16.itemsize // stored.itemsize
    peak = run(_PEAK_PROGRAM, warm, directory)
    assert weights <= peak < weights + 2 * _RING_BYTES


def test_no_file_of_the_checkpoint_stays_mapped(tmp_path: Path):
    directory = write_checkpoint(tmp_path)
    runner = make_runner(directory)
    assert str(directory) not in Path("/proc/self/maps").read_text()
    assert runner


def run(program: str, *directories: Path) -> int:
    """What a program prints, in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-c", program, *directories],
        cwd=Path(__file__).parents[2],
        check=True,
        capture_output=True,
        text=True,
    )
    return int(done.stdout)
