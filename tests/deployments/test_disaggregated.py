"""Prompts computed at prefill replicas: on the decode replicas' node and on another one."""

import json
import random
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from deployments.aggregated import app as aggregated
from deployments.disaggregated import app as disaggregated
from rtp_serve.config.disaggregation import DisaggregatedConfig
from rtp_serve.config.serving import AppConfig
from tests.deployments.applications import RaySession, RunningApp, running, tiny_engine

NUM_PROMPTS = 200


def config_of(model: Path, **options: Any) -> DisaggregatedConfig:
    replica = {"num_cpus": 0.25, "health_check_period_s": 0.5}
    prefill = {"replica": replica, "engine": {}} | options.pop("prefill", {})
    engine = {**tiny_engine(model), "dtype": "float32", **options.pop("engine", {})}
    transfer = {"choice": "always", "lease_s": 1.0, **options.pop("transfer", {})}
    return DisaggregatedConfig(
        engine=engine, replica=replica, prefill=prefill, transfer=transfer, **options
    )


def make_bodies(num_prompts: int) -> list[dict[str, Any]]:
    """Short and long prompts with and without a common beginning, greedy and seeded."""
    rng = random.Random(11)
    letters = "abcdefghij klmnop"
    shared = "".join(rng.choices(letters, k=200))
    bodies = []
    for number in range(num_prompts):
        own = "".join(rng.choices(letters, k=rng.choice((1, 15, 16, 17, 40, 160, 600))))
        body = {"prompt": shared[: rng.choice((0, 0, 64, 200))] + own, "max_tokens": 24}
        body |= rng.choice(({"temperature": 0}, {"temperature": 1.0, "seed": number}))
        bodies.append(body | {"ignore_eos": True, "logprobs": 1})
    return bodies


def complete(served: RunningApp, body: dict[str, Any]) -> Any:
    answer = httpx.post(f"{served.url}/v1/completions", json=body, timeout=60)
    assert answer.status_code == 200, answer.text
    return answer.json()["choices"]


def complete_all(served: RunningApp, bodies: list[dict[str, Any]], at_once: int = 16) -> list[Any]:
    with ThreadPoolExecutor(at_once) as threads:
        return list(threads.map(lambda body: complete(served, body), bodies))


def stream(served: RunningApp, body: dict[str, Any], on_chunk: Any = lambda: None) -> str:
    text = ""
    url = f"{served.url}/v1/completions"
    with httpx.stream("POST", url, json={**body, "stream": True}, timeout=60) as answer:
        for line in answer.iter_lines():
            assert "error" not in line, line
            if line.startswith("data: {"):
                text += json.loads(line.removeprefix("data: "))["choices"][0]["text"]
                on_chunk()
    return text


def figures(served: RunningApp) -> dict[str, float]:
    """Sums over replicas and labels."""
    sums: dict[str, float] = {}
    for line in httpx.get(f"{served.url}/metrics", timeout=10).text.splitlines():
        if not line.startswith("#"):
            name, value = line.rsplit(" ", 1)
            name = name.partition("{")[0].removeprefix("rtp_serve:")
            sums[name] = sums.get(name, 0.0) + float(value)
    return sums


@pytest.fixture(scope="module")
def expected(session: RaySession, tiny_model: Path) -> list[Any]:
    """What one engine that does everything answers."""
    config = AppConfig(
        engine={**tiny_engine(tiny_model), "dtype": "float32"}, replica={"num_cpus": 0.25}
    )
    with running(session, "pd-aggregated", aggregated(config)) as app:
        return complete_all(app, make_bodies(NUM_PROMPTS))


@pytest.fixture(scope="module")
def served(session: RaySession, tiny_model: Path) -> Iterator[RunningApp]:
    with running(session, "pd", disaggregated(config_of(tiny_model))) as app:
        yield app


@pytest.mark.ray
def test_answers_are_those_of_one_engine(served: RunningApp, expected: list[Any]):
    assert complete_all(served, make_bodies(NUM_PROMPTS)) == expected
    after = figures(served)
    assert after["prefills_elsewhere_total"] == NUM_PROMPTS
    assert after.get("prefill_fallbacks_total", 0) == 0
    assert after["transfer_bytes_total"] > 0
