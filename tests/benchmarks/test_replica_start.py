import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks.processes import parse_mapped
from benchmarks.replica_start import FIGURES, extra_ms, step_ms
from rtp_serve.ops.dispatch import Backend, backend
from tests.checkpoints import tiny_config, write_checkpoint

ROOT = Path(__file__).parents[2]
SMAPS = """\
7f00-7f10 r--s 00000000 08:01 77 /store/a.weights
Size:            1000 kB
Rss:              600 kB
Pss:              300 kB
Pss_Dirty:         50 kB
7f20-7f30 rw-p 00000000 00:00 0
Size:              40 kB
Pss:               10 kB
7f40-7f50 r--s 00001000 08:01 78 /store/b.weights
Pss:                7 kB
VmFlags: rd sh
"""


def test_the_names_of_figures_are_kept():
    assert FIGURES == ("warm_replica_ms", "pss_two_over_one", "decode_mapped_over_private")


def test_only_mappings_of_the_named_files_are_counted():
    assert parse_mapped(SMAPS, "/store/") == 307 << 10
    assert parse_mapped(SMAPS, "b.weights") == 7 << 10
    assert parse_mapped(SMAPS, "/elsewhere/") == 0


def test_a_start_is_what_the_first_forward_took_beyond_a_warm_one():
    assert extra_ms(350.0, [90.0, 110.0, 100.0]) == 250.0


def test_a_step_is_the_median_gap_between_tokens():
    assert step_ms([5.0, 5.1, 5.2, 9.0]) == pytest.approx(100)


@pytest.mark.skipif(backend() is Backend.REFERENCE, reason="weights are not packed")
def test_it_prints_what_it_promises_and_leaves_no_store(tmp_path: Path):
    config = tiny_config(torch_dtype="bfloat16")
    model = write_checkpoint(tmp_path / "model", config, dtype=torch.bfloat16)
    options = f"--models {tmp_path}/models --model {model} --repetitions 2 --patience 0"
    options += f" --output-tokens 4 --kv-memory 1MiB --threads 1 --output {tmp_path}/runs"
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.replica_start", "--json", *options.split()],
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=True,
        timeout=120,
    )
    (line,) = done.stdout.splitlines()
    figures = json.loads(line)["figures"]
    assert {*FIGURES, "first_replica_ms", "private_replica_ms"} <= figures.keys()
    assert figures["pss_two_over_one"] == pytest.approx(1, abs=0.05)
    assert list((tmp_path / "models").iterdir()) == []
    runs = [json.loads(run) for run in (tmp_path / "runs").read_text().splitlines()]
    assert sum("warm_replica_ms" in run for run in runs) == 2
