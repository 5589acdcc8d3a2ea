"""Replicas of several ranks: in one placement group, on one node and on two."""

import json
import os
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
import ray
from ray import serve

from deployments.aggregated import app as build_application
from deployments.args import ingress_options, replica_options
from deployments.ingress import IngressDeployment
from deployments.ranks import ranks_of_bundles
from deployments.replicas import EngineReplica, build_real_engine
from rtp_serve.config.serving import AppConfig
from tests.deployments.applications import RaySession, RunningApp, running, tiny_engine

ALONE, ONE_NODE, TWO_NODES = "ranks-alone", "ranks-one-node", "ranks-two-nodes"


def config_of(model: Path, tp: int) -> AppConfig:
    return AppConfig(
        engine={**tiny_engine(model), "dtype": "float32", "parallel": {"tp": tp}},
        replica={"num_cpus": 0.25, "health_check_period_s": 0.5},
    )


def spread(config: AppConfig) -> serve.Application:
    """Every rank on a node of its own."""
    options = replica_options(config) | {"placement_group_strategy": "STRICT_SPREAD"}
    engine = serve.deployment(EngineReplica, **options).bind(config.engine, build_real_engine)
    return serve.deployment(IngressDeployment, **ingress_options(config)).bind(engine, config)


@pytest.fixture(scope="module", params=[ONE_NODE, TWO_NODES])
def served(
    session: RaySession, tiny_model: Path, request: pytest.FixtureRequest
) -> Iterator[RunningApp]:
    config = config_of(tiny_model, 2)
    app = build_application(config) if request.param == ONE_NODE else spread(config)
    with running(session, request.param, app) as served:
        yield served


def completion(served: RunningApp, prompt: str, **body: Any) -> httpx.Response:
    body = {"prompt": prompt, "temperature": 0, "max_tokens": 40, "ignore_eos": True, **body}
    return httpx.post(f"{served.url}/v1/completions", json=body, timeout=30)


def followers() -> list[int]:
    """Processes of ranks."""
    actors = ray._private.state.actors().values()
    return [
        each["Pid"]
        for each in actors
        if each["ActorClassName"] == "RankActor" and each["State"] == "ALIVE"
    ]


@pytest.mark.ray
def test_an_answer_is_that_of_one_rank(served: RunningApp, session: RaySession, tiny_model: Path):
    prompts = ["What", "a longer prompt than that", "x" * 100]
    with running(session, ALONE, build_application(config_of(tiny_model, 1))) as alone:
        expected = [completion(alone, prompt).json()["choices"] for prompt in prompts]
    assert [completion(served, prompt).json()["choices"] for prompt in prompts] == expected


@pytest.mark.ray
def test_streams_outlive_a_killed_rank_whose_replica_is_replaced(served: RunningApp):
    (pid,) = followers()
    has_begun = threading.Event()
    url = f"{served.url}/v1/completions"

    def stream(prompt: str) -> str:
        body = {"prompt": prompt, "max_tokens": 1500, "ignore_eos": True, "temperature": 0}
        text = ""
        with httpx.stream("POST", url, json={**body, "stream": True}, timeout=60) as answer:
            for line in answer.iter_lines():
                assert "error" not in line
                if line.startswith("data: {"):
                    text += json.loads(line.removeprefix("data: "))["choices"][0]["text"]
                has_begun.set()
        return text

    prompts = ("a", "b", "c")
    with ThreadPoolExecutor(3) as threads:
        streams = [threads.submit(stream, prompt) for prompt in prompts]
        assert has_begun.wait(10)
        os.kill(pid, signal.SIGKILL)
        texts = [each.result() for each in streams]
    (successor,) = followers()
    assert successor != pid
    assert texts == [stream(prompt) for prompt in prompts]


def test_ranks_follow_nodes_with_the_replicas_own_first():
    assert ranks_of_bundles({0: "b", 1: "a", 2: "b", 3: "a", 4: "b"}, "b") == [0, 2, 4, 1, 3]
