"""Replicas change their roles while streams run: nobody notices, and nothing is loaded again."""

import asyncio
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families
from ray import serve
from ray.serve.context import _get_global_client
from ray.serve.schema import ServeDeploySchema

from rtp_serve.clock import WallClock
from rtp_serve.config.disaggregation import DECODE_REPLICA, PREFILL_REPLICA
from rtp_serve.observability.metrics import PREFIX
from tests.deployments.applications import RaySession, RunningApp, tiny_engine

pytestmark = pytest.mark.ray

NAME = "switched"
NUM_STREAMS = 16
NUM_BLOCKS = 2048  # of each replica, enough for all of them


def deploy(model: Path, **num_switched: int) -> None:
    """As by `serve deploy`: two replicas of either kind, of which so many have the other role."""
    replica = {"num_cpus": 0.25, "health_check_period_s": 0.5, "num_replicas": 2}
    application = {
        "name": NAME,
        "route_prefix": f"/{NAME}",
        "import_path": "deployments.disaggregated:app",
        "args": {
            "engine": {
                **tiny_engine(model),
                "dtype": "float32",
                "cache": {"num_blocks": NUM_BLOCKS},
            },
            "replica": replica,
            "prefill": {"replica": replica},
            "transfer": {"choice": "always"},
            "switching": True,
        },
        "deployments": [
            {
                "name": name,
                "user_config": {"model": str(model), "switched": num_switched.get(name, 0)},
            }
            for name in (PREFILL_REPLICA, DECODE_REPLICA)
        ],
    }
    schema = ServeDeploySchema.model_validate({"applications": [application]})
    _get_global_client().deploy_apps(schema)
    # On a machine that is busy four replicas take longer than Serve would wait.
    until(is_running, "it does not run", 120)


def is_running() -> bool:
    found = serve.status().applications.get(NAME)
    return found is not None and found.status == "RUNNING"


@pytest.fixture(scope="module")
def served(session: RaySession, tiny_model: Path) -> Iterator[RunningApp]:
    try:
        deploy(tiny_model)
        handle = serve.get_app_handle(NAME)
        served = RunningApp(NAME, f"{session.http_url}/{NAME}", handle)
        until(lambda: len(with_role(served, "prefill")) == 2, "roles are not told")
        yield served
    finally:
        serve.delete(NAME)


@pytest.fixture(scope="module")
def expected(served: RunningApp) -> list[Any]:
    """What is answered while nobody switches."""
    with ThreadPoolExecutor(NUM_STREAMS) as threads:
        return [each.result() for each in all_begun(threads, served)]


@pytest.fixture(autouse=True)
def nobody_pays(served: RunningApp, expected: list[Any]) -> Iterator[None]:
    """Processes and their weights stay, no stream is dropped, and nothing is held in the end."""
    deployments = (PREFILL_REPLICA, DECODE_REPLICA)
    pids = {name: served.pids(name) for name in deployments}
    loaded = by_replica(served, "weight_load_bytes_total")
    yield
    assert sum(by_replica(served, "dropped_streams_total").values()) == 0
    assert by_replica(served, "weight_load_bytes_total") == loaded
    assert {name: served.pids(name) for name in deployments} == pids
    until(lambda: is_idle(served), "something is held still")


def until(is_so: Callable[[], bool], what: str, seconds: float = 60) -> None:
    clock = WallClock()
    deadline_s = clock.monotonic() + seconds
    while not is_so():
        assert clock.monotonic() < deadline_s, what
        threading.Event().wait(0.05)


def by_replica(served: RunningApp, name: str, **labels: str) -> dict[str, float]:
    """A figure of `/metrics`, summed over all labels but `replica` and those given."""
    found: dict[str, float] = {}
    text = httpx.get(f"{served.url}/metrics", timeout=10).text
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            if sample.name == PREFIX + name and labels.items() <= sample.labels.items():
                replica = sample.labels.get("replica", "")
                found[replica] = found.get(replica, 0.0) + sample.value
    return found


def with_role(served: RunningApp, role: str) -> set[str]:
    return {*by_replica(served, "replica_role", role=role)}


def body(number: int) -> dict[str, Any]:
    sampling = {"temperature": 0} if number % 2 else {"temperature": 1.0, "seed": number}
    return {
        "prompt": "abcdefgh"[number % 8] * (40 + 7 * number),
        "max_tokens": 1200,
        "ignore_eos": True,
        "logprobs": 1,
        **sampling,
    }


def complete(served: RunningApp, body: dict[str, Any]) -> Any:
    answer = httpx.post(f"{served.url}/v1/completions", json=body, timeout=120)
    assert answer.status_code == 200, answer.text
    return answer.json()["choices"]


def all_begun(threads: ThreadPoolExecutor, served: RunningApp) -> list[Future[Any]]:
    """Streams, most of which generate: the first may end before the last begins."""
    answers = [threads.submit(complete, served, body(number)) for number in range(NUM_STREAMS)]
    until(lambda: num_running(served) >= NUM_STREAMS * 3 // 4, "the streams do not begin")
    return answers


def num_running(served: RunningApp) -> float:
    return sum(by_replica(served, "num_requests_running").values())


def is_idle(served: RunningApp) -> bool:
    names = ("num_requests_running", "kv_cache_usage_ratio", "published_prompts")
    return not any(sum(by_replica(served, name).values()) for name in names)


def cached_blocks(served: RunningApp) -> dict[str, int]:
    handle = serve.get_deployment_handle(PREFILL_REPLICA, NAME)
    stats = asyncio.run(_results(handle.broadcast("cache_stats")))
    return {each.replica: each.device.num_cached for each in stats}


async def _results(response: Any) -> list[Any]:
    return [*await response.results_async(timeout_s=10)]


def num_drained(served: RunningApp) -> float:
    return sum(by_replica(served, "resumed_streams_total", reason="drained").values())


def test_a_prefill_replica_becomes_a_decode_replica_and_back_under_streams(
    served: RunningApp, expected: list[Any], tiny_model: Path
):
    cached, before = cached_blocks(served), num_drained(served)
    assert min(cached.values()) > 0
    with ThreadPoolExecutor(NUM_STREAMS) as threads:
        # While streams run, one of the prefill replicas becomes a decode replica...
        answers = all_begun(threads, served)
        deploy(tiny_model, PrefillReplica=1)
        until(lambda: len(with_role(served, "decode")) == 3, "nobody switches")
        (switched,) = with_role(served, "decode") & cached.keys()
        assert cached_blocks(served)[switched] >= cached[switched]
        assert [each.result() for each in answers] == expected

        # ...which runs streams whose prompts the other one computes...
        until(lambda: is_given_streams(served, switched), "it gets no streams")
        answers = all_begun(threads, served)
        until(lambda: by_replica(served, "num_requests_running")[switched] > 1, "few streams")

        # ...and hands them over when it is a prefill replica again.
        deploy(tiny_model)
        assert [each.result() for each in answers] == expected
    until(lambda: with_role(served, "prefill") == {*cached}, "it does not switch back")
    assert num_drained(served) > before


def test_a_decode_replica_becomes_a_prefill_replica_and_back_under_streams(
    served: RunningApp, expected: list[Any], tiny_model: Path
):
    own, before = with_role(served, "prefill"), num_drained(served)
    with ThreadPoolExecutor(NUM_STREAMS) as threads:
        # One of the decode replicas hands its streams over...
        answers = all_begun(threads, served)
        deploy(tiny_model, DecodeReplica=1)
        until(lambda: len(with_role(served, "prefill")) == 3, "nobody switches")
        (switched,) = with_role(served, "prefill") - own
        assert [each.result() for each in answers] == expected
        assert num_drained(served) > before

        # ...computes prompts for the other one, and has no streams...
        until(lambda: is_asked_for_prompts(served, switched), "it computes nothing")

        # ...until it is a decode replica again.
        deploy(tiny_model)
        until(lambda: with_role(served, "prefill") == own, "it does not switch back")
        until(lambda: is_given_streams(served, switched), "it gets no streams")


def is_given_streams(served: RunningApp, replica: str) -> bool:
    """With prompts of which the replica has nothing from the time when it computed them for
    others."""
    name = "prefills_elsewhere_total"
    before = by_replica(served, name)[replica]
    complete_some(served)
    return by_replica(served, name)[replica] > before


def is_asked_for_prompts(served: RunningApp, replica: str) -> bool:
    """And for nothing else."""
    names = "generation_tokens_total", "prefills_elsewhere_total"
    before = [by_replica(served, name)[replica] for name in names]
    complete_some(served)
    tokens, streams = (by_replica(served, name)[replica] for name in names)
    assert streams == before[1]
    return tokens > before[0]


def complete_some(served: RunningApp) -> None:
    """At once, so that nobody has room for all."""
    bodies = [{"prompt": str(uuid4()), "max_tokens": 8} for _ in range(NUM_STREAMS)]
    with ThreadPoolExecutor(NUM_STREAMS) as threads:
        list(threads.map(lambda body: complete(served, body), bodies))
