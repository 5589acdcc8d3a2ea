from pathlib import Path

import pytest

from benchmarks.plot import curves, draw
from benchmarks.samples import Spread

RUNS = [
    {"server": "vllm", "workload": "c2", "repetition": -1, "output_tokens_per_s": 1.0},
    {"server": "vllm", "workload": "c16", "repetition": 0, "output_tokens_per_s": 30.0},
    {"server": "vllm", "workload": "c2", "repetition": 0, "output_tokens_per_s": 10.0},
    {"server": "vllm", "workload": "c2", "repetition": 1, "output_tokens_per_s": 14.0},
    {"server": "vllm", "workload": "c2", "repetition": 2, "num_failed": 1},
    {"server": "vllm", "workload": "prefix", "repetition": 0, "output_tokens_per_s": 9.0},
]


def test_a_curve_has_the_complete_bursts_in_order_of_concurrency():
    found = curves(RUNS)
    assert found == {"vllm": {2: Spread(12.0, 10.0, 14.0, 2), 16: Spread(30.0, 30.0, 30.0, 1)}}
    assert list(found["vllm"]) == [2, 16]


def test_the_picture_is_a_png(tmp_path: Path):
    pytest.importorskip("matplotlib")
    draw(curves(RUNS), tmp_path / "throughput.png", "a title")
    assert (tmp_path / "throughput.png").read_bytes().startswith(b"\x89PNG")
