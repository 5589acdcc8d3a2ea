import json
import subprocess
import sys
from pathlib import Path

from benchmarks.parallel import FIGURES

ROOT = Path(__file__).parents[2]


def test_the_parallel_benchmark_prints_what_it_promises():
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.parallel", "--json", "--repetitions", "1"],
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=True,
        timeout=150,
    )
    (line,) = done.stdout.splitlines()
    figures = json.loads(line)["figures"]
    assert set(FIGURES) <= figures.keys()
    assert {"allreduce_shared_memory_4096k_us", "allreduce_gloo_1k_us"} <= figures.keys()
    assert all(value > 0 for value in figures.values())


def test_the_names_of_figures_are_kept():
    assert {"allreduce_16k_us", "step_broadcast_us"} <= set(FIGURES)
