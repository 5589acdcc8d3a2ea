import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks import peers, serving
from benchmarks.engine import FIGURES, Sizes, rate_of_all, sweep_output
from benchmarks.report import Report
from tests.checkpoints import tiny_config, write_checkpoint
from tests.unit.text.vocabularies import byte_level_directory

ROOT = Path(__file__).parents[2]


def test_the_engine_benchmark_prints_what_it_promises(tmp_path: Path):
    byte_level_directory(tmp_path)
    model = write_checkpoint(
        tmp_path, tiny_config(vocab_size=264, torch_dtype="bfloat16"), dtype=torch.bfloat16
    )
    options = "--repetitions 2 --sweep-repetitions 1 --batches 1,3 --prompt-tokens 8 --seed 3"
    options += f" --output-tokens 5 --prefill-tokens 40 --probe-mib 1 --output {tmp_path}/runs"
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.engine", "--json", "--model", model, *options.split()],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=os.environ | {"RTP_SERVE_CACHE": str(tmp_path / "cache")},
        check=True,
        timeout=120,
    )
    (line,) = done.stdout.splitlines()
    figures = json.loads(line)["figures"]
    assert {*FIGURES, "decode_tokens_per_s_b1", "decode_tokens_per_s_b3"} <= figures.keys()
    assert all(isinstance(value, float) for value in figures.values())
    assert figures["decode_tokens_per_s"] > 0
    assert figures["dispatch_fraction"] < 1
    runs = [json.loads(run) for run in (tmp_path / "runs").read_text().splitlines()]
    assert sum("decode_step_ms" in run for run in runs) == 2


def test_the_names_of_figures_are_kept():
    assert set(FIGURES) == {
        "decode_bandwidth_fraction",
        "prefill_gemm_fraction",
        "dispatch_fraction",
        "decode_tokens_per_s",
        "prefill_tokens_per_s",
    }
    assert set(serving.FIGURES) == {"serve_fraction_of_engine", "ttft_overhead_ms"}
    assert peers.MODELS == {"smollm2": "", "qwen": "qwen_"}


def test_a_sweep_counts_only_while_all_sequences_decode():
    # The second sequence begins at 2.0, the first one ends at 4.0: five tokens in between.
    times = [[0.5, 1.5, 2.5, 3.5, 4.0], [2.0, 3.0, 4.0, 5.0]]
    assert rate_of_all(times) == pytest.approx(5 / 2)


def test_the_cache_holds_the_largest_batch():
    sizes = Sizes(prompt=512, output=128, prefill=2048, batches=(1, 32))
    assert sizes.num_blocks * 16 > 32 * (512 + sweep_output(32))


def test_a_report_is_one_json_object():
    report = Report()
    report.add("rate", [3.0, 1.0, 2.0])
    report.add("nothing", [])
    said = json.loads(report.json())
    assert said["figures"] == {"rate": 2.0}
    assert said["spreads"]["rate"] == {"median": 2.0, "low": 1.0, "high": 3.0, "num_samples": 3}
    assert report.table() == "rate  2.000 (1.000–3.000, n=3)"
