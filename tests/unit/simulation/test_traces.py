from pathlib import Path

import pytest

from rtp_serve.errors import ConfigError
from rtp_serve.simulation.traces import read_trace

EXCERPTS = sorted((Path(__file__).parents[3] / "benchmarks" / "traces").glob("*.[cj]s*"))
MOONCAKE = '{"timestamp": 3000, "input_length": 1100, "output_length": 5, "hash_ids": [4, 7, 9]}\n'
RTP_LLM = '{"ts": 56, "il": 2093, "ol": 0, "bh": ["x", "y"], "priority": 70}\n'
AZURE = """TIMESTAMP,ContextTokens,GeneratedTokens
2023-11-16 18:17:03.9799600,4808,10
2023-11-16 18:17:04.0319600,3180,8
"""


def written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "trace"
    path.write_text(text)
    return path


def test_mooncakes_partial_last_block_is_no_block(tmp_path: Path):
    trace = read_trace(written(tmp_path, MOONCAKE))
    (request,) = trace.requests
    assert (trace.block_size, request.arrival_s, request.num_tokens) == (512, 0.0, 1100)
    assert request.block_hashes == (b"4", b"7")


def test_rtp_llms_priorities_and_empty_answers(tmp_path: Path):
    trace = read_trace(written(tmp_path, RTP_LLM))
    (request,) = trace.requests
    assert (trace.block_size, request.priority, request.num_new_tokens) == (1024, 70, 1)
    assert request.block_hashes == (b"x", b"y")


def test_azures_times_have_seven_digits(tmp_path: Path):
    trace = read_trace(written(tmp_path, AZURE))
    assert [each.arrival_s for each in trace.requests] == pytest.approx([0.0, 0.052])
    assert [each.num_tokens for each in trace.requests] == [4808, 3180]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "no known format"),
        ("time,size\n1,2\n", "no known format"),
        (MOONCAKE.replace("input_length", "length"), "line 1: no 'input_length'"),
        (MOONCAKE + "{broken\n", "line 2: "),
        (MOONCAKE + MOONCAKE.replace("1100", "-1"), r"line 2: input_length.*\(got -1\)"),
        (AZURE.replace("3180", "many"), "line 3: .*'many'"),
        (AZURE.splitlines()[0] + "\n", "no requests"),
    ],
)
def test_what_is_no_trace_is_an_error_that_names_the_file(tmp_path: Path, text: str, expected: str):
    path = written(tmp_path, text)
    with pytest.raises(ConfigError, match=expected) as error:
        read_trace(path)
    assert str(path) in str(error.value)


def test_a_trace_that_is_not_there_is_an_error(tmp_path: Path):
    with pytest.raises(ConfigError, match="No such file"):
        read_trace(tmp_path / "none")


@pytest.mark.parametrize("path", EXCERPTS, ids=lambda path: path.name)
def test_the_excerpts_that_ship_are_read(path: Path):
    trace = read_trace(path)
    assert len(trace.requests) == 1000
    assert all(each.arrival_s >= 0 and each.num_tokens > 0 for each in trace.requests)
