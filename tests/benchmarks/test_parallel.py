import json
import subprocess
import sys
from pathlib import Path

from benchmarks.moe import write_checkpoint as write_sparse
from benchmarks.parallel import FIGURES
from tests.benchmarks.test_moe import TINY
from tests.checkpoints import tiny_config, write_checkpoint

ROOT = Path(__file__).parents[2]


def test_the_parallel_benchmark_prints_what_it_promises(tmp_path: Path):
    model = write_checkpoint(tmp_path / "dense", tiny_config())
    write_sparse(tmp_path / "sparse", TINY)
    command = [
        "benchmarks.parallel", "--json", "--repetitions", "1", "--models", str(tmp_path / "models"),
        "--model", str(model), "--sparse-model", str(tmp_path / "sparse"), "--patience-s", "0",
    ]  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-m", *command],
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=True,
        timeout=400,
    )
    (line,) = done.stdout.splitlines()
    figures = json.loads(line)["figures"]
    assert set(FIGURES) <= figures.keys()
    assert {"allreduce_shared_memory_4096k_us", "allreduce_gloo_1k_us"} <= figures.keys()
    assert "tp2_step_overhead_fraction_batch_8" in figures
    assert figures["allreduce_16k_us"] > 0


def test_the_names_of_figures_are_kept():
    kept = {"allreduce_16k_us", "step_broadcast_us", "moe_x_transformers"}
    assert kept | {"tp2_step_overhead_fraction"} <= set(FIGURES)
