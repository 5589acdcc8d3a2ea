"""Prompts computed at prefill replicas: on the decode replicas' node and on another one."""

import os
import random
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import pytest

from deployments.aggregated import app as aggregated
from deployments.disaggregated import app as disaggregated
from rtp_serve.clock import WallClock
from rtp_serve.config.disaggregation import DECODE_REPLICA, PREFILL_REPLICA, DisaggregatedConfig
from rtp_serve.config.serving import AppConfig
from tests.deployments.applications import (
    BACK,
    FRONT,
    RaySession,
    RunningApp,
    running,
    tiny_engine,
)

NUM_PROMPTS = 200


def config_of(model: Path, **options: Any) -> DisaggregatedConfig:
    replica = {"num_cpus": 0.25, "health_check_period_s": 0.5, **options.pop("replica", {})}
    prefill = options.pop("prefill", {})
    prefill = {"engine": {}, **prefill, "replica": {**replica, **prefill.get("replica", {})}}
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


def is_idle(served: RunningApp) -> bool:
    """Nothing runs, waits or is held, on either side."""
    now = served.figures()
    return now["num_requests_running"] == now["kv_cache_usage_ratio"] == 0


def wait_until_idle(served: RunningApp, seconds: float = 10) -> None:
    clock = WallClock()
    deadline_s = clock.monotonic() + seconds
    while not is_idle(served):
        assert clock.monotonic() < deadline_s, "something is held still"
        threading.Event().wait(0.05)


@pytest.mark.ray
def test_answers_are_those_of_one_engine(served: RunningApp, expected: list[Any]):
    assert complete_all(served, make_bodies(NUM_PROMPTS)) == expected
    after = served.figures()
    assert after["prefills_elsewhere_total"] == NUM_PROMPTS
    assert after.get("prefill_fallbacks_total", 0) == 0
    assert after["transfer_bytes_total"] > 0
    wait_until_idle(served)


@pytest.mark.ray
def test_answers_from_another_node_are_the_same(
    session: RaySession, tiny_model: Path, expected: list[Any]
):
    config = config_of(
        tiny_model,
        replica={"resources": {FRONT: 1}},
        prefill={"replica": {"resources": {BACK: 1}}},
    )
    num_prompts = 40
    with running(session, "pd-nodes", disaggregated(config)) as app:
        assert complete_all(app, make_bodies(num_prompts)) == expected[:num_prompts]
        after = app.figures()
        assert after["prefills_elsewhere_total"] == num_prompts
        wait_until_idle(app)


@pytest.mark.ray
@pytest.mark.parametrize(("prefill_tp", "decode_tp"), [(1, 2), (2, 1)])
def test_ranks_may_differ(
    session: RaySession,
    tiny_model: Path,
    expected: list[Any],
    prefill_tp: int,
    decode_tp: int,
):
    config = config_of(
        tiny_model,
        engine={"parallel": {"tp": decode_tp}},
        prefill={"engine": {"parallel": {"tp": prefill_tp}}},
    )
    greedy = [
        (body, choices)
        for body, choices in zip(make_bodies(NUM_PROMPTS), expected, strict=True)
        if body["temperature"] == 0
    ][:40]
    with running(session, f"pd-{prefill_tp}-{decode_tp}", disaggregated(config)) as app:
        answers = complete_all(app, [body for body, _ in greedy])
        after = app.figures()
    assert after["prefills_elsewhere_total"] == len(greedy)
    texts = [choices[0]["text"] for choices in answers]
    assert texts == [choices[0]["text"] for _, choices in greedy]


@pytest.mark.ray
def test_what_cannot_be_moved_is_answered_here(served: RunningApp):
    before = served.figures()["prefills_elsewhere_total"]
    two = complete(served, {"prompt": "two of them", "n": 2, "seed": 3, "max_tokens": 4})
    assert len(two) == 2
    assert served.figures()["prefills_elsewhere_total"] == before


@pytest.mark.ray
def test_one_token_is_the_whole_answer(served: RunningApp):
    body = {"prompt": "x" * 50, "temperature": 0, "ignore_eos": True}
    (one,) = complete(served, {**body, "max_tokens": 1})
    (two,) = complete(served, {**body, "max_tokens": 2})
    assert one["finish_reason"] == "length"
    assert two["text"].startswith(one["text"])
    wait_until_idle(served)


@pytest.mark.ray
@pytest.mark.parametrize("deployment", [PREFILL_REPLICA, DECODE_REPLICA])
@pytest.mark.parametrize("blow", [signal.SIGKILL, signal.SIGSTOP])
def test_a_lost_side_costs_time_alone(
    session: RaySession, tiny_model: Path, expected: list[Any], deployment: str, blow: int
):
    """In the middle of a hundred answers; replicas that are stopped do not go on."""
    config = config_of(tiny_model, replica={"health_check_timeout_s": 2.0})
    bodies = make_bodies(100)
    with running(session, f"pd-{deployment.lower()}-{blow}", disaggregated(config)) as app:
        (victim,) = app.pids(deployment)
        with ThreadPoolExecutor(1) as threads:
            answering = threads.submit(complete_all, app, bodies, 100)
            while not app.figures().get("generation_tokens_total"):
                pass
            os.kill(victim, blow)
            try:
                assert answering.result() == expected[:100]
                wait_until_idle(app, seconds=20)
            finally:
                with suppress(ProcessLookupError):  # Serve waits for one that is stopped
                    os.kill(victim, signal.SIGKILL)


@pytest.mark.ray
def test_who_goes_away_leaves_nothing_held(served: RunningApp):
    """At whatever stage: the request is cut a little later each time."""
    url = f"{served.url}/v1/completions"
    for delay_ms in range(0, 60, 3):
        body = {"prompt": f"{delay_ms} " + "y" * 1500, "max_tokens": 2000, "stream": True}
        with suppress(httpx.ReadTimeout):
            httpx.post(url, json=body, timeout=httpx.Timeout(5, read=0.001 + delay_ms / 1000))
    wait_until_idle(served, seconds=5)
