"""KV tiers under the whole application: replicas share a node's store, and outlive it."""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import sha256
from itertools import count
from pathlib import Path
from typing import Any

import httpx
import pytest
import ray

from deployments.actors import NAMESPACE
from deployments.aggregated import app as build_application
from rtp_serve.cli.cache_stats import print_stats
from rtp_serve.config.serving import AppConfig
from rtp_serve.kv_store.arena_files import SHARED_MEMORY, ArenaFiles
from tests.deployments.applications import BACK, RaySession, RunningApp, running, tiny_engine
from tests.deployments.test_store_client import until

pytestmark = pytest.mark.ray

PROMPT = "the quick brown fox jumps over the lazy dog " * 6


def arguments(model: Path, disk: Path) -> dict[str, Any]:
    tiers = {
        "host": {"enable": True, "memory": "64MiB"},
        "disk": {"enable": True, "directory": str(disk), "max_size": "64MiB"},
        "application": f"tiers-{os.getpid()}",
    }
    return {
        "engine": {**tiny_engine(model, max_num_seqs=4), "kv_store": tiers},
        "api": {"auth": {"admin_token_sha256": sha256(b"root").hexdigest()}},
        "replica": {"num_replicas": 2, "health_check_period_s": 0.5, "resources": {BACK: 1}},
    }


@contextmanager
def served(session: RaySession, model: Path, disk: Path) -> Iterator[RunningApp]:
    config = AppConfig.model_validate(arguments(model, disk))
    with running(session, "tiers", build_application(config)) as app:
        yield app


def complete(app: RunningApp, prompt: str) -> tuple[str, int]:
    """The answer, and how many tokens of the prompt were cached in whole blocks: tiers have no
    others."""
    body = {"prompt": prompt, "max_tokens": 8, "temperature": 0, "ignore_eos": True}
    answer = httpx.post(f"{app.url}/v1/completions", json=body, timeout=60)
    assert answer.status_code == 200, answer.text
    result = answer.json()
    cached = result["usage"]["prompt_tokens_details"]["cached_tokens"]
    return result["choices"][0]["text"], cached // 16 * 16


def check_that_caches_can_be_told_trimmed_and_pinned(app: RunningApp, prompt: str) -> None:
    """Two replicas, one store: it is told once, trimmed once, pinned once."""
    stats = ask(app, "GET", "stats")
    assert len({each["replica"] for each in stats["replicas"]}) == 2
    (store,) = stats["stores"]
    assert store["is_answering"]
    assert {each["store"] for each in stats["replicas"]} == {store["store"]}
    (pinned,) = ask(app, "POST", "pin", prompt=prompt, ttl_s=3600)["stores"]
    assert pinned["store"] == store["store"]
    assert pinned["num_blocks"] > 10
    num_before = num_ready(app)
    (trimmed,) = ask(app, "POST", "trim", bytes=store["host"]["slab_bytes"])["stores"]
    assert trimmed["num_bytes"] == store["host"]["slab_bytes"]
    assert num_ready(app) == num_before - 1
    ask(app, "POST", "trim", bytes=1 << 30)
    assert num_ready(app) == pinned["num_blocks"]
    print_stats(app.url, "root", as_json=False)  # raises if it does not know an answer of ours
    figures = httpx.get(f"{app.url}/metrics", timeout=10).text
    assert f'kv_store_pins{{replica="{stats["replicas"][0]["replica"]}"' in figures
    assert 'rtp_serve:kv_tier_stored_blocks_total{replica="' in figures


def ask(app: RunningApp, method: str, path: str, **body: Any) -> dict[str, Any]:
    """An admin's question about the caches."""
    answer = httpx.request(
        method,
        f"{app.url}/cache/{path}",
        json=body or None,
        headers={"authorization": "Bearer root"},
        timeout=60,
    )
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


def num_ready(app: RunningApp) -> int:
    """Blocks in the one store's arena."""
    (store,) = ask(app, "GET", "stats")["stores"]
    return int(store["host"]["slabs_by_state"].get("ready", 0))


def is_known_to_the_master(app: RunningApp) -> bool:
    """As much of both workers' store as the store has."""
    (store,) = ask(app, "GET", "stats")["stores"]
    num_blocks = store["host"]["slabs_by_state"]["ready"] + store["disk"]["num_blocks"]
    answer = httpx.get(f"{app.url}/routing", headers={"authorization": "Bearer root"}, timeout=10)
    assert answer.status_code == 200, answer.text
    return [each["num_tier_blocks"] for each in answer.json()["workers"]] == [num_blocks] * 2


def pins(app: RunningApp) -> int:
    """In the one store; 0 while it does not answer."""
    (store,) = ask(app, "GET", "stats")["stores"]
    return int(store["host"]["num_pins"])


@pytest.fixture(autouse=True)
def no_store_is_left() -> Iterator[None]:
    """Stores would outlive the test for a while."""
    yield
    for name in store_names("tiers"):
        ray.kill(ray.get_actor(name, NAMESPACE))
    until(no_arena_is_left)


def no_arena_is_left() -> bool:
    """Their files go with the last process."""
    ArenaFiles().remove_unheld()
    return not list(SHARED_MEMORY.glob("rtp_serve-tiers-*"))


def store_names(application: str) -> list[str]:
    """Of store actors."""
    actors = ray.util.list_named_actors(all_namespaces=True)
    return [each["name"] for each in actors if f".kv_store.{application}" in each["name"]]


def store_pid() -> int:
    """The store actor's process."""
    (name,) = store_names(f"tiers-{os.getpid()}")
    store = ray.get_actor(name, NAMESPACE)
    pid = int(ray.get(store.join.remote("test")))
    ray.get(store.leave.remote("test"))
    return pid


def test_replicas_share_outlive_the_store_and_find_the_disk_again(
    session: RaySession, tiny_model: Path, tmp_path: Path
):
    prompt = PROMPT
    with served(session, tiny_model, tmp_path) as app:
        expected, num_full = "", 0
        tries = count()

        def is_shared() -> bool:
            """Of a new prompt one answer alone computes: whichever replica gives the others."""
            nonlocal prompt, expected, num_full
            prompt = f"{next(tries)} {PROMPT}"
            first, num_cached = complete(app, prompt)
            answers = {complete(app, prompt) for _ in range(8)}
            assert num_cached < 16
            assert {text for text, _ in answers} == {first}
            expected, num_full = first, max(cached for _, cached in answers)
            return answers == {(first, num_full)}

        until(is_shared)
        assert num_full > 200
        until(lambda: is_known_to_the_master(app))
        check_that_caches_can_be_told_trimmed_and_pinned(app, prompt)
        num_pins = pins(app)
        assert num_pins > 10
        os.kill(store_pid(), signal.SIGKILL)
        for index in range(10):
            text, _ = complete(app, f"{index} {PROMPT}")
            assert text
            assert complete(app, prompt)[0] == expected
        until(lambda: pins(app) == num_pins)
    with served(session, tiny_model, tmp_path) as app:
        assert complete(app, prompt) == (expected, num_full), "a restart forgot what was stored"


def is_kept_on_both_nodes(app: RunningApp) -> bool:
    """What the configuration wants kept."""
    stats = ask(app, "GET", "stats")
    kept = [each["pinned"][0] for each in stats["replicas"] if each["pinned"]]
    is_whole = all(each["num_pinned"] == each["num_tokens"] > 200 for each in kept)
    return len(kept) == 2 and is_whole and all(s["host"]["num_pins"] for s in stats["stores"])


def test_what_another_node_has_is_fetched_and_kept(
    session: RaySession, tiny_model: Path, tmp_path: Path
):
    """A replica on each of two nodes."""
    values = arguments(tiny_model, tmp_path)
    values["engine"]["kv_store"]["application"] = f"tiers-nodes-{os.getpid()}"
    values["engine"]["kv_store"]["remote"] = {"enable": True}
    values["engine"]["kv_store"]["disk"] = {}
    values["engine"]["kv_store"]["pinned"] = [{"name": "bot", "prompt": f"You are a fox. {PROMPT}"}]
    del values["replica"]["resources"]
    values["replica"]["num_cpus"] = 7  # of a node's 8
    application = build_application(AppConfig.model_validate(values))
    with running(session, "nodes", application) as app:
        until(lambda: is_kept_on_both_nodes(app))
        tries = count()

        def is_shared() -> bool:
            prompt = f"{next(tries)} {PROMPT}"
            first, num_cached = complete(app, prompt)
            answers = {complete(app, prompt) for _ in range(8)}
            assert num_cached < 16
            assert {text for text, _ in answers} == {first}
            return len({num_cached for _, num_cached in answers}) == 1

        until(is_shared)
