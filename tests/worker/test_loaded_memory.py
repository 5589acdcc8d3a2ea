"""What loading leaves in memory: the packed weights, a tied one once, and nothing of the files."""

import subprocess
import sys
from pathlib import Path

import torch

from tests.checkpoints import tiny_config, write_checkpoint
from tests.worker.engines import make_runner

_SPARE_BYTES = 2 << 20
"""Less than the embedding, and than what loading has in hand at a time."""

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
    done = subprocess.run(
        [sys.executable, "-c", _PROGRAM, warm, directory],
        cwd=Path(__file__).parents[2],
        check=True,
        capture_output=True,
        text=True,
    )
    weights = (directory / "model.safetensors").stat().st_size
    assert weights <= int(done.stdout) < weights + _SPARE_BYTES


def test_no_file_of_the_checkpoint_stays_mapped(tmp_path: Path):
    directory = write_checkpoint(tmp_path)
    runner = make_runner(directory)
    assert str(directory) not in Path("/proc/self/maps").read_text()
    assert runner
