"""The loading benchmark: its arithmetic, its checkpoint and its command."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.loaders import Stored, loaders, raw_loaders
from benchmarks.loading import FIGURES, MethodFailed, ratios, seconds_in_fresh_process
from benchmarks.sharded import sharded_checkpoint, split
from benchmarks.throttled import Rate, ThrottledStore, throttled_ratios
from rtp_serve.clock import VirtualClock
from rtp_serve.loader.checkpoint import Checkpoint
from tests.unit.loader.safetensors_files import read_bfloat16

ROOT = Path(__file__).parents[2]


def test_a_ratio_is_their_time_over_ours():
    cold = {"ours": 2.0, "raw_2": 1.9, "raw_4": 1.8, "safe_open": 3.0, "load_file": 2.5}
    cold["huge_raw_2"] = 1.0
    warm = {"ours": 1.0, "safe_open": 1.5, "load_file": 0.5}
    assert ratios(cold, warm) == {
        "cold_fraction_of_raw_read": pytest.approx(0.9),
        "cold_fraction_of_huge_raw_read": 0.5,
        "cold_x_safe_open": 1.5,
        "cold_x_best_peer": 1.25,
        "warm_x_best_peer": 0.5,
    }


def test_without_a_peer_there_is_no_ratio_to_it():
    assert ratios({"ours": 2.0, "raw_2": 1.0}, {"ours": 1.0}) == {"cold_fraction_of_raw_read": 0.5}


def test_throttled_ratios_are_of_one_repetition():
    seconds = {"throttled_tp4": 2.0, "throttled_tp8": 2.1, "throttled_model_order_tp4": 10.0}
    assert throttled_ratios(seconds | {"throttled_tensor_order_tp4": 8.0}) == {
        "throttled_tp4_x_model_order": 5.0,
        "throttled_tp4_x_tensor_order": 4.0,
        "throttled_tp8_over_tp4": pytest.approx(1.05),
    }


def test_a_throttled_store_gives_its_line_to_one_request_at_a_time():
    """10 MB at 100 MB/s take 0.1 s of the line, and 0.05 s more to arrive."""

    def read(file: Path, offset: int, into: memoryview) -> int:
        clock.advance(0.02)
        return len(into)

    clock, waits = VirtualClock(), []
    rate = Rate(bytes_per_s=100e6, request_s=0.05)
    store = ThrottledStore(read, rate, clock.monotonic, waits.append)
    into = memoryview(bytearray(10_000_000))
    assert store(Path("file"), 0, into) == len(into)
    assert store(Path("file"), 0, into) == len(into)
    clock.advance(1)
    store(Path("file"), 0, into)
    # Read from 0.00 to 0.02 and, since nobody waits here, 0.02 to 0.04; the line is free at 0.2.
    assert waits == pytest.approx([0.13, 0.21, 0.13])


def test_files_have_near_equal_bytes_and_every_tensor_once():
    shapes = {f"t{number}": (10, 3 + number % 5) for number in range(50)}
    files = split(shapes, 4)
    assert [name for names in files for name in names] == list(shapes)
    sizes = [sum(shapes[name][1] for name in names) for names in files]
    assert max(sizes) - min(sizes) <= 2 * 7


def test_the_checkpoint_is_made_once_and_is_finite(tmp_path: Path):
    directory = sharded_checkpoint(tmp_path, "small", 3)
    assert sharded_checkpoint(tmp_path, "small", 3) == directory
    stored = Stored.of(directory)
    assert len(stored.files) == 3
    assert set(stored.file_by_name) == Checkpoint(directory).names
    for file in stored.files:
        for bits in read_bfloat16(file).values():
            assert ((bits & 0x7F80) != 0x7F80).all()


def test_every_installed_method_loads_the_checkpoint(tmp_path: Path):
    stored = Stored.of(sharded_checkpoint(tmp_path, "small", 2))
    stored.drop_from_cache()
    for loader in (loaders() | raw_loaders()).values():
        assert loader(stored)


def test_a_method_that_fails_is_an_error(tmp_path: Path):
    stored = Stored.of(sharded_checkpoint(tmp_path, "small", 2))
    with pytest.raises(MethodFailed, match="ended with status"):
        seconds_in_fresh_process(lambda stored: None, stored)


def test_the_command_prints_what_it_promises(tmp_path: Path):
    options = "--shape small --throttled-shape small --files 2 --repetitions 2 "
    options += f"--parent {tmp_path} --output {tmp_path}/runs"
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.loading", "--json", *options.split()],
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=True,
        timeout=120,
    )
    (line,) = done.stdout.splitlines()
    figures = json.loads(line)["figures"]
    assert set(FIGURES) <= figures.keys()
    assert all(value > 0 for value in figures.values())
    runs = [json.loads(run) for run in (tmp_path / "runs").read_text().splitlines()]
    assert [run["repetition"] for run in runs] == [0, 1]
    assert {"ours", "raw_4", "safe_open"} <= runs[0]["cold"].keys()
    assert "raw_4" not in runs[0]["warm"]
