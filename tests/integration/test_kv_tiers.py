"""Real models over real tiers: the same tokens as without, from wherever the prefix came."""

import asyncio
import os
import threading
from pathlib import Path

import pytest

from rtp_serve import LLM, SamplingParams
from rtp_serve.build import build_engine
from rtp_serve.config.engine import EngineConfig
from rtp_serve.errors import ConfigError
from rtp_serve.kv_store.transfer_rate import TransferRate
from rtp_serve.loader.hub import resolve
from rtp_serve.text.chat_template import ChatTemplate
from rtp_serve.text.tokenizer import Tokenizer
from tests.factories import make_request

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


def test_tokens_are_the_same_where_a_prefix_is_half_computed_and_half_restored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    llm = LLM(cache={"num_blocks": 30}, kv_store=tiers(tmp_path, disk=True))
    expected = answers(llm)
    llm.close()
    monkeypatch.setattr(TransferRate, "num_to_compute", lambda _, num_blocks, __: num_blocks // 2)
    llm = LLM(cache={"num_blocks": 30}, kv_store=tiers(tmp_path, disk=True))
    (output,) = llm.generate([PROMPTS[0]], SAMPLING)
    assert output.completions[0].token_ids == expected[0]
    assert output.num_cached_tokens == 160
    assert output.num_disk_tokens == 160
    llm.close()


def test_the_disk_needs_the_host():
    with pytest.raises(ConfigError, match=r"disk\.enable needs host\.enable"):
        LLM(kv_store={"disk": {"enable": True}})


SYSTEM = "You are a patient assistant who answers in one sentence, and never guesses a number. " * 4
CHAT = [{"role": "system", "content": SYSTEM}]


def pinned_settings(tmp_path: Path, *pinned: dict[str, object]) -> EngineConfig:
    store = tiers(tmp_path, disk=False) | {"pinned": pinned}
    return EngineConfig.model_validate({"cache": {"num_blocks": 64}, "kv_store": store})


def test_prefixes_of_the_configuration_are_computed_at_the_start_and_kept(tmp_path: Path):
    engine = build_engine(
        pinned_settings(
            tmp_path,
            {"name": "bot", "messages": CHAT, "tenant": "alice"},
            {"name": "text", "prompt": SYSTEM},
        )
    )
    template = ChatTemplate.from_directory(resolve("smollm2-135m-instruct"))
    tokenizer = Tokenizer.from_directory(resolve("smollm2-135m-instruct"))
    chat = template.render([*CHAT, {"role": "user", "content": "Hello!"}])

    async def scenario() -> None:
        while True:
            (stats,) = await engine.cache_stats()
            assert stats.tiers is not None
            if all(each.num_pinned == each.num_tokens for each in stats.tiers.pinned):
                break
            await asyncio.to_thread(threading.Event().wait, 0.02)
        assert [each.name for each in stats.tiers.pinned] == ["bot", "text"]
        kept = stats.tiers.pinned[0].num_tokens
        assert kept > 48
        request = make_request(
            "r", tokenizer.encode(chat, False), salt="alice", max_tokens=2, ignore_eos=True
        )
        deltas = [each async for each in engine.generate(request)]
        assert deltas[0].num_cached_tokens >= kept

    try:
        asyncio.run(asyncio.wait_for(scenario(), 100))
    finally:
        engine.shutdown()


def test_what_cannot_be_a_prefix_is_a_warning_and_no_failed_start(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    """A text of less than a block."""
    settings = pinned_settings(tmp_path, {"name": "short", "prompt": "You are"})
    build_engine(settings).shutdown()
    assert "'short' is not kept: it has 2 tokens" in caplog.text
