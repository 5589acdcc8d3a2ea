"""The engine's specification: what a client gets depends on its request alone.

Every request is run by itself first: one sequence, whole prompt in one step, no prefix cache. Then
everything underneath is varied, and tokens and log-probabilities must be the same bits.
"""

import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from rtp_serve.engine.request import Request
from rtp_serve.engine.sampling_params import SamplingParams
from rtp_serve.loader.hub import resolve
from tests.checkpoints import LLAMA3_ROPE, tiny_config, write_checkpoint
from tests.integration.engines import Generated, SharedModel, load, make_engine, run

TINY_MODELS = {
    "llama": tiny_config("LlamaForCausalLM", rope_scaling=LLAMA3_ROPE),
    "qwen2": tiny_config("Qwen2ForCausalLM", tie_word_embeddings=True),
    "qwen3": tiny_config("Qwen3ForCausalLM"),
    "qwen3-moe": tiny_config("Qwen3MoeForCausalLM"),
    "qwen2-moe": tiny_config("Qwen2MoeForCausalLM", mlp_only_layers=[0]),
}

SAMPLINGS: list[dict[str, Any]] = [
    {"temperature": 0.0},
    {"temperature": 0.0, "repetition_penalty": 1.2, "frequency_penalty": 0.3},
    {"temperature": 1.0},
    {"temperature": 0.8, "top_p": 0.9},
    {"temperature": 1.2, "top_k": 20, "min_p": 0.02, "presence_penalty": 0.5},
    {"temperature": 0.7, "n": 3},
    {"temperature": 1.5, "min_tokens": 10, "logit_bias": {2: 8.0}, "bad_words": ((5, 6), (7,))},
]

VARIANTS: dict[str, dict[str, Any]] = {
    "batch": {},
    "chunks of 16": {"max_num_batched_tokens": 16, "max_num_seqs": 16},
    "chunks of 37": {"max_num_batched_tokens": 37, "max_num_seqs": 5},
    "prefix cache": {"enable_prefix_caching": True},
    "preemption": {"num_blocks": 16, "max_num_batched_tokens": 64, "max_num_seqs": 16},
    "preemption and prefix cache": {
        "num_blocks": 16,
        "max_num_batched_tokens": 64,
        "max_num_seqs": 16,
        "enable_prefix_caching": True,
    },
    "one thread": {"num_threads": 1, "max_num_batched_tokens": 128},
    "priority queue": {"policy": "priority", "max_num_seqs": 3},
}


def make_requests(
    vocab_size: int, num_requests: int, max_tokens: int, max_prompt: int
) -> list[Request]:
    """Prompts of ragged lengths, half of them with a common beginning."""
    rng = random.Random(7)

    def tokens(count: int) -> tuple[int, ...]:
        return tuple(rng.randrange(3, vocab_size) for _ in range(count))

    shared = tokens(max_prompt // 2)
    requests = []
    for i in range(num_requests):
        prompt = tokens(rng.randrange(1, max_prompt // 2))
        if i % 2:
            prompt = shared[: rng.randrange(1, len(shared) + 1)] + prompt
        sampling = SamplingParams(
            max_tokens=rng.randrange(max_tokens // 2, max_tokens + 1),
            logprobs=2 if i % 3 == 0 else None,
            **SAMPLINGS[i % len(SAMPLINGS)],
        )
        requests.append(Request(f"r{i}", prompt, sampling, seed=i, priority=rng.randrange(3)))
    return requests


def run_alone(loaded: SharedModel, requests: list[Request]) -> dict[str, Generated]:
    """One sequence at a time: a request of n becomes n requests with the sequences' own seeds."""
    outputs: dict[str, Generated] = {}
    for request in requests:
        engine = make_engine(loaded, max_num_seqs=1, max_num_batched_tokens=4096)
        outputs |= run(engine, [request])
    return outputs


def assert_same(got: dict[str, Generated], expected: dict[str, Generated]) -> None:
    for request_id, wanted in expected.items():
        assert got[request_id].token_ids == wanted.token_ids, f"tokens of {request_id} differ"
        assert got[request_id].logprobs == wanted.logprobs, f"logprobs of {request_id} differ"


class Alone:
    """A loaded model, its requests, and what each gives by itself."""

    def __init__(self, loaded: SharedModel, requests: list[Request]) -> None:
        self.loaded = loaded
        self.requests = requests
        self.outputs = run_alone(loaded, requests)


@pytest.fixture(
    scope="module",
    params=[(name, dtype) for name in TINY_MODELS for dtype in ("float32", "bfloat16")],
    ids=lambda param: "-".join(param),
)
def tiny(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Alone:
    name, dtype = request.param
    directory = write_checkpoint(
        tmp_path_factory.mktemp(f"{name}-{dtype}"), TINY_MODELS[name], dtype=getattr(torch, dtype)
    )
    loaded = load(directory, dtype=dtype, max_model_len=192, cache={"num_blocks": 512})
    return Alone(loaded, make_requests(256, num_requests=12, max_tokens=24, max_prompt=140))


@pytest.fixture(scope="module")
def smollm() -> Alone:
    directory = Path(resolve("smollm2-135m-instruct"))
    loaded = load(directory, max_model_len=256, cache={"num_blocks": 256})
    return Alone(loaded, make_requests(49152, num_requests=6, max_tokens=16, max_prompt=160))


@pytest.mark.parametrize("variant", VARIANTS)
def test_random_models_give_the_same_tokens(tiny: Alone, variant: str):
    check_variant(tiny, VARIANTS[variant])


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_real_model_gives_the_same_tokens(smollm: Alone, variant: str):
    check_variant(smollm, VARIANTS[variant])


def check_variant(alone: Alone, variant: dict[str, Any]) -> None:
    engine = make_engine(alone.loaded, **variant)
    assert_same(run(engine, alone.requests), alone.outputs)
    if variant.get("enable_prefix_caching") and "num_blocks" not in variant:
        again = run(engine, alone.requests)
        assert_same(again, alone.outputs)
        hits = sum(output.num_cached_tokens for output in again.values())
        assert hits > 0, "the second run was to hit the prefix cache"
    if "num_blocks" in variant:
        assert engine.counters.num_preemptions > 0, "the small pool was to preempt"


@pytest.mark.parametrize("seed", range(3))
def test_what_another_engine_has_begun_goes_on_the_same(tiny: Alone, seed: int):
    rng = random.Random(seed)
    resumed, expected = [], {}
    for request in tiny.requests:
        whole = tiny.outputs[request.request_id]
        cuts = [rng.randrange(len(token_ids)) for token_ids in whole.token_ids]
        emitted = tuple(ids[:cut] for ids, cut in zip(whole.token_ids, cuts, strict=True))
        resumed.append(replace(request, emitted=emitted))
        expected[request.request_id] = Generated(
            tuple(ids[cut:] for ids, cut in zip(whole.token_ids, cuts, strict=True)),
            tuple(entries[cut:] for entries, cut in zip(whole.logprobs, cuts, strict=True)),
            num_cached_tokens=0,
        )
    engine = make_engine(
        tiny.loaded, enable_prefix_caching=seed > 0, max_num_batched_tokens=64, max_num_seqs=16
    )
    assert_same(run(engine, resumed), expected)


def test_seeds_matter(tiny: Alone):
    """Guards the tests above: seeded outputs are not all the same for another reason."""
    sampled = [r for r in tiny.requests if not r.sampling.is_greedy]
    other = [Request(r.request_id, r.prompt_token_ids, r.sampling, r.seed + 1000) for r in sampled]
    outputs = run(make_engine(tiny.loaded), other)
    assert any(
        outputs[r.request_id].token_ids != tiny.outputs[r.request_id].token_ids for r in sampled
    )


def test_the_sequences_of_a_request_differ(tiny: Alone):
    assert any(
        len(set(output.token_ids)) > 1
        for output in tiny.outputs.values()
        if len(output.token_ids) > 1
    )
