"""Chats of several turns, which branch: the cache saves their beginnings, to the token."""

import random
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from rtp_serve.engine.core import EngineCore
from rtp_serve.engine.request import Request
from rtp_serve.engine.sampling_params import SamplingParams
from rtp_serve.loader.hub import resolve
from tests.checkpoints import tiny_config, write_checkpoint
from tests.integration.engines import Generated, SharedModel, load, make_engine, run

NUM_CHATS = 5
BRANCHES = 3


@pytest.fixture(scope="module", params=["float32", "bfloat16", "smollm2-135m-instruct"])
def loaded(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> SharedModel:
    name = request.param
    cache = {"num_blocks": 512}
    if name.startswith("smollm"):
        return load(Path(resolve(name)), max_model_len=256, cache=cache)
    config = tiny_config("Qwen3ForCausalLM")
    directory = write_checkpoint(tmp_path_factory.mktemp(name), config, dtype=getattr(torch, name))
    return load(directory, dtype=name, max_model_len=256, cache=cache)


def first_turns(loaded: SharedModel) -> list[Request]:
    rng = random.Random(3)
    vocab_size = loaded.served.vocab_size
    sampling = SamplingParams(max_tokens=10, temperature=0.9, logprobs=1, ignore_eos=True)
    return [
        Request(
            f"chat{i}",
            tuple(rng.randrange(3, vocab_size) for _ in range(rng.randrange(5, 70))),
            sampling,
            seed=i,
        )
        for i in range(NUM_CHATS)
    ]


def next_turns(requests: list[Request], outputs: dict[str, Generated]) -> list[Request]:
    """Branches of each chat: other messages after the answer, and after half of it."""
    rng = random.Random(4)
    turns = []
    for request in requests:
        (answer,) = outputs[request.request_id].token_ids
        for branch in range(BRANCHES):
            kept = answer if branch else answer[: len(answer) // 2]
            message = tuple(rng.randrange(3, 256) for _ in range(rng.randrange(1, 25)))
            prompt = request.prompt_token_ids + kept + message
            turns.append(replace(request, request_id=f"{request.request_id}-{branch}",
                                 prompt_token_ids=prompt, seed=branch))  # fmt: skip
    return turns


def talk(engine: EngineCore, loaded: SharedModel) -> tuple[list[dict[str, Generated]], list[int]]:
    """What each of three turns gave, and the prompt tokens computed in each."""
    turns: list[dict[str, Generated]] = []
    computed: list[int] = []
    requests = first_turns(loaded)
    for _ in range(3):
        before = engine.counters.prefix_queries - engine.counters.prefix_hits
        turns.append(run(engine, requests))
        computed.append(engine.counters.prefix_queries - engine.counters.prefix_hits - before)
        requests = next_turns(requests, turns[-1])[:16]
    return turns, computed


def seen(turns: list[dict[str, Generated]]) -> list[dict[str, Generated]]:
    """What a client must not be able to tell apart."""
    return [
        {name: replace(each, num_cached_tokens=0) for name, each in turn.items()} for turn in turns
    ]


@pytest.mark.parametrize("budget", [24, 1024])
def test_chats_get_the_same_tokens_for_fewer_computed(loaded: SharedModel, budget: int):
    alone, _ = talk(make_engine(loaded, max_num_seqs=1), loaded)
    settings = {"enable_prefix_caching": True, "max_num_batched_tokens": budget,
                "max_num_seqs": 8}  # fmt: skip
    whole, computed_whole = talk(make_engine(loaded, enable_partial_hits=False, **settings), loaded)
    engine = make_engine(loaded, **settings)
    partly, computed_partly = talk(engine, loaded)
    assert seen(whole) == seen(alone)
    assert seen(partly) == seen(alone)
    assert computed_partly[0] <= computed_whole[0]
    assert computed_partly[1] < 0.75 * computed_whole[1]
    assert computed_partly[2] < computed_whole[2]
    assert engine.counters.partial_hits > 0


def test_chats_in_little_memory_get_the_same_tokens(loaded: SharedModel):
    alone, _ = talk(make_engine(loaded, max_num_seqs=1), loaded)
    engine = make_engine(
        loaded,
        enable_prefix_caching=True,
        num_blocks=20,
        max_num_batched_tokens=48,
        max_num_seqs=8,
    )
    little, _ = talk(engine, loaded)
    assert seen(little) == seen(alone)
    assert engine.counters.num_preemptions > 0
    assert engine.counters.partial_hits > 0
