"""Real models over real tiers: the same tokens as without, from wherever the prefix came."""

import os
from pathlib import Path

import pytest

from rtp_serve import LLM, SamplingParams
from rtp_serve.errors import ConfigError

SAMPLING = SamplingParams(max_tokens=6, temperature=0.0, ignore_eos=True)
PROMPTS = [[100 + 7 * i + j % 50 for j in range(330)] for i in range(3)]


def tiers(tmp_path: Path, disk: bool) -> dict[str, object]:
    return {
        "host": {"enable": True, "memory": "64MiB"},
        "disk": {"enable": disk, "directory": str(tmp_path / "kv"), "max_size": "256MiB"},
        "application": f"test-{os.getpid()}",
    }


def answers(llm: LLM) -> list[tuple[int, ...]]:
    outputs = [llm.generate([prompt], SAMPLING)[0] for prompt in PROMPTS]
    return [output.completions[0].token_ids for output in outputs]


@pytest.mark.parametrize("disk", [False, True])
def test_tokens_are_those_of_an_engine_without_tiers(tmp_path: Path, disk: bool):
    expected = answers(LLM(cache={"num_blocks": 30}))
    llm = LLM(cache={"num_blocks": 30}, kv_store=tiers(tmp_path, disk))
    assert answers(llm) == expected
    again = [llm.generate([prompt], SAMPLING)[0] for prompt in PROMPTS]
    assert [output.completions[0].token_ids for output in again] == expected
    assert all(output.num_cached_tokens == 320 for output in again)
    assert all(output.num_host_tokens > 0 for output in again)
    llm.close()
    if disk:
        llm = LLM(cache={"num_blocks": 30}, kv_store=tiers(tmp_path, disk))
        (output,) = llm.generate([PROMPTS[0]], SAMPLING)
        assert output.completions[0].token_ids == expected[0]
        assert output.num_cached_tokens == 320, "a restart forgot what was on the disk"
        assert output.num_disk_tokens == 320
        llm.close()


def test_the_disk_needs_the_host():
    with pytest.raises(ConfigError, match=r"disk\.enable needs host\.enable"):
        LLM(kv_store={"disk": {"enable": True}})
