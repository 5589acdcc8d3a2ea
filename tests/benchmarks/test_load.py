import argparse
from pathlib import Path

import pytest

from benchmarks.load import LoadResult, Target, figures
from benchmarks.own_load import make_prompts
from benchmarks.vllm_load import bench_arguments, parse_result
from benchmarks.workloads import COMPARED, SWEPT, WORKLOADS, Workload

TWO = Workload("two", prompt_tokens=10, output_tokens=3, num_requests=2, concurrency=2)


def test_figures_count_the_tokens_asked_for():
    result = LoadResult(2.0, (0.1, 0.3), ((0.1, 0.3), (0.2,)))
    found = figures(TWO, result)
    assert found["output_tokens_per_s"] == 6 / 2.0
    assert found["ttft_ms"] == pytest.approx(200)
    assert found["p95_ttft_ms"] == pytest.approx(290)
    assert found["prefill_tokens_per_s"] == pytest.approx(10 / 0.2)
    assert found["itl_ms"] == pytest.approx(200)
    # Two tokens follow the first, in 0.4 and 0.2 s, however many chunks bring them.
    assert found["decode_tokens_per_s"] == pytest.approx(2 / 0.3)


def test_a_run_with_a_failed_request_is_not_complete():
    answer = {
        "duration": 1.0,
        "ttfts": [0.5, 0.0],
        "itls": [[0.1], []],
        "errors": ["", "Traceback\nConnectionError"],
    }
    result = parse_result(answer)
    assert result == LoadResult(1.0, (0.5,), ((0.1,),), ("Traceback\nConnectionError",))
    assert not result.is_complete(TWO)


@pytest.mark.parametrize("name", [*COMPARED, *SWEPT, "first"])
def test_every_workload_has_a_command_line(name: str):
    workload = WORKLOADS[name]
    target = Target("http://127.0.0.1:1", "m")
    words = bench_arguments(target, workload, Path("/tokenizer"), seed=7)
    options = dict(word.removeprefix("--").split("=", 1) for word in words if "=" in word)
    assert options["num-prompts"] == str(workload.num_requests)
    assert options["max-concurrency"] == str(workload.concurrency)
    assert options["seed"] == "7"
    is_prefixed = options["dataset-name"] == "prefix_repetition"
    assert is_prefixed == (name == "prefix")
    assert {"--ignore-eos", "--save-detailed"} <= set(words)
    assert argparse.ArgumentParser().parse_known_args(words)[1] == words


def test_prompts_share_their_prefixes_in_turn_and_never_repeat():
    workload = WORKLOADS["prefix"]
    prompts = list(make_prompts(workload, vocab_size=49152, seed=3))
    assert {len(prompt) for prompt in prompts} == {1024 + 64}
    assert len({tuple(prompt[:1024]) for prompt in prompts}) == workload.num_prefixes
    assert len({tuple(prompt) for prompt in prompts}) == workload.num_requests
    assert prompts == list(make_prompts(workload, vocab_size=49152, seed=3))
    assert prompts != list(make_prompts(workload, vocab_size=49152, seed=4))
