import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest
import torch

from benchmarks.block_traces import trace_of
from benchmarks.held_store import HeldStore
from benchmarks.kv_tiers import FIGURES, Sizes
from benchmarks.storing import Run
from benchmarks.tier_replay import Answered, Replayed, check_equal
from benchmarks.tiered_engine import Answer
from rtp_serve.errors import ConfigError, RtpServeError
from rtp_serve.kv_store.client import StoreClient
from tests.checkpoints import tiny_config, write_checkpoint
from tests.unit.kv_store.arenas import content, make_arena, make_reservation, place_of

ROOT = Path(__file__).parents[2]
ANSWER = Answer(1.0, (1, 2), num_cached=32, num_host=0, num_disk=0, num_prompt=33)


def replayed(*turns: Answered) -> Replayed:
    return Replayed(turns, 1, trace_of(iter([])))


def test_the_names_of_figures_are_kept():
    assert FIGURES == (
        "ttft_p95_ratio",
        "hit_fraction_of_infinite",
        "documents_ttft_p95_ratio",
        "host_restore_over_recompute",
        "disk_restore_over_recompute",
        "decode_slowdown_while_storing",
    )


def test_first_turns_are_no_part_of_the_latency():
    first = Answered(True, 0, replace(ANSWER, ttft_s=9.0), replace(ANSWER, ttft_s=1.0))
    later = [
        Answered(False, 64, replace(ANSWER, ttft_s=each), replace(ANSWER, ttft_s=each / 4))
        for each in (1.0, 2.0, 3.0)
    ]
    assert replayed(first, *later).ttft_p95_ratio == pytest.approx(0.25)


def test_hits_are_measured_against_those_of_a_cache_without_limits():
    cold = replace(ANSWER, num_cached=0)
    half = Answered(False, 64, cold, replace(ANSWER, num_host=16))
    found = replayed(half, Answered(True, 0, cold, cold))
    assert found.hit_fraction == 0.5
    assert found.figures("x_")["x_hit_fraction_from_host"] == 0.25
    assert found.figures()["hit_fraction_device_only"] == 0


def test_an_answer_says_where_its_prefix_came_from():
    assert ANSWER.is_from_device()
    assert not replace(ANSWER, num_prompt=49).is_from_device()
    assert replace(ANSWER, num_host=32).is_from_host()
    assert not replace(ANSWER, num_host=16, num_disk=16).is_from_host()
    assert replace(ANSWER, num_disk=32).is_from_disk()
    assert replace(ANSWER, num_cached=0).is_cold()


def test_engines_that_differ_are_an_error():
    check_equal([(ANSWER, ANSWER)], 0)
    with pytest.raises(RtpServeError, match="turn 7"):
        check_equal([(ANSWER, replace(ANSWER, token_ids=(1, 3)))], 7)


def test_steps_beside_storing_are_compared_with_those_that_are_not():
    run = Run((1.0, 2.2, 6.0), (1.0, 2.0, 3.0), num_host=2, num_disk=0)
    assert run.slowdown() == pytest.approx(0.1)
    assert run.mean_slowdown() == pytest.approx(9.2 / 6 - 1)
    for nothing in (replace(run, num_host=0), replace(run, storing_s=())):
        with pytest.raises(AssertionError, match="nothing was stored"):
            nothing.slowdown()


def test_whoever_stores_waits_while_the_store_is_held():
    arena, reservation = make_arena(), make_reservation("a")
    arena.mark_reserved(reservation)
    held = HeldStore(cast(StoreClient, SimpleNamespace(reserve=lambda *_: ())), arena)
    with ThreadPoolExecutor() as threads:
        with held.held():
            waiting = [
                threads.submit(held.reserve, [], "owner"),
                threads.submit(arena.put, [reservation], [content("a")], 0),
                threads.submit(arena.view, place_of(reservation)),
            ]
            assert not wait(waiting, timeout=0.05).done
        assert waiting[0].result() == ()
        assert waiting[1].result() == [True]


@pytest.mark.parametrize("num_blocks", [33, 65])
def test_a_prefix_must_leave_the_device_for_two_others(num_blocks: int):
    sizes = Sizes(num_blocks, turns=9, questions=9, prefix_tokens=512, batch=1, decode_steps=24)
    with pytest.raises(ConfigError, match="must fit"):
        sizes.check()
    replace(sizes, num_blocks=64).check()


def test_what_a_batch_computes_must_fit_into_half_of_the_device():
    sizes = Sizes(64, turns=9, questions=9, prefix_tokens=640, batch=2, decode_steps=24)
    sizes.check()
    with pytest.raises(ConfigError, match="--batch 3"):
        replace(sizes, batch=3).check()


def test_it_prints_what_it_promises_and_leaves_nothing(tmp_path: Path):
    # A block is several of the disk's pages.
    config = tiny_config(torch_dtype="bfloat16", head_dim=64, max_position_embeddings=2048)
    model = write_checkpoint(tmp_path / "model", config, dtype=torch.bfloat16)
    options = f"--model {model} --repetitions 1 --drawings 1 --num-blocks 64 --turns 60 --seed 3"
    options += " --questions 20 --prefix-tokens 640 --batch 1 --patience 0 --threads 1"
    options += " --decode-steps 150"
    options += f" --parent {tmp_path}/disk --output {tmp_path}/runs"
    arenas = set(Path("/dev/shm").glob("*.arena"))
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.kv_tiers", "--json", *options.split()],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=os.environ | {"RTP_SERVE_CACHE": str(tmp_path / "cache")},
        check=True,
        timeout=160,
    )
    (line,) = done.stdout.splitlines()
    figures = json.loads(line)["figures"]
    assert set(FIGURES) <= figures.keys()
    assert 0 < figures["hit_fraction_of_infinite"] <= 1
    assert figures["blocks_to_host_while_storing"] > 0
    assert figures["steps_while_storing"] > 0
    assert figures["documents_hit_fraction"] > figures["documents_hit_fraction_device_only"]
    assert list((tmp_path / "disk").iterdir()) == []
    assert set(Path("/dev/shm").glob("*benchmark-*.arena")) <= arenas
    runs = [json.loads(run) for run in (tmp_path / "runs").read_text().splitlines()]
    assert sum("host_restore_over_recompute" in run for run in runs) == 1
