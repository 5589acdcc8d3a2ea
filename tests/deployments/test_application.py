"""The whole application with the real engine: HTTP and Python callers, over two nodes."""

import asyncio
import json
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
from ray import serve
from ray.serve.context import _get_global_client
from ray.serve.handle import DeploymentHandle
from ray.serve.schema import ServeDeploySchema

from deployments.aggregated import app as build_application
from rtp_serve.config.serving import AppConfig
from rtp_serve.errors import InvalidRequest
from tests.deployments.applications import BACK, FRONT, RaySession, RunningApp, running, tiny_engine

pytestmark = pytest.mark.ray

HELLO = [{"role": "user", "content": "Hello"}]
ENDLESS = {"max_tokens": 3000, "ignore_eos": True, "temperature": 0}


@pytest.fixture(scope="module")
def served(session: RaySession, tiny_model: Path) -> Iterator[RunningApp]:
    """The ingress on one node, its engine on the other."""
    config = AppConfig(
        engine=tiny_engine(tiny_model, max_num_seqs=32),
        ingress={"resources": {FRONT: 1}, "autoscaling": {"max_replicas": 1}},
        replica={"resources": {BACK: 1}, "health_check_period_s": 0.5},
    )
    with running(session, "rtp-serve", build_application(config)) as app:
        yield app


def chat(served: RunningApp, **body: Any) -> httpx.Response:
    body = {"messages": HELLO, "temperature": 0, "max_tokens": 8, "ignore_eos": True, **body}
    return httpx.post(f"{served.url}/v1/chat/completions", json=body, timeout=30)


def events(response: httpx.Response) -> Iterator[Any]:
    """The JSON of each event of a stream."""
    for line in response.iter_lines():
        if line.startswith("data: ") and line != "data: [DONE]":
            yield json.loads(line.removeprefix("data: "))


async def until_idle(served: RunningApp) -> None:
    async with asyncio.timeout(10):
        while True:
            now = await asyncio.to_thread(served.figures)
            if now["num_requests_running"] == now["kv_cache_usage_ratio"] == 0:
                return
            await asyncio.sleep(0.02)


def test_a_chat_is_answered(served: RunningApp):
    answer = chat(served).json()
    assert answer["model"] == "tiny"
    assert answer["usage"]["completion_tokens"] == 8


@pytest.mark.parametrize("given", [{}, {"x-request-id": "trace-1"}])
def test_an_answer_has_one_request_id(served: RunningApp, given: dict[str, str]):
    answer = httpx.get(f"{served.url}/health", headers=given, timeout=10)
    (request_id,) = answer.headers.get_list("x-request-id")
    assert request_id == given.get("x-request-id", request_id) != ""


def test_a_stream_has_the_text_of_the_whole_answer(served: RunningApp):
    whole = chat(served, max_tokens=30).json()["choices"][0]["message"]["content"]
    body = {"messages": HELLO, "stream": True, **ENDLESS, "max_tokens": 30}
    with httpx.stream("POST", f"{served.url}/v1/chat/completions", json=body) as response:
        deltas = [event["choices"][0]["delta"] for event in events(response)]
    assert "".join(delta.get("content", "") for delta in deltas) == whole


def test_200_requests_of_which_a_third_leaves_midway_answer_as_if_alone(served: RunningApp):
    rng = random.Random(2)
    bodies = [
        {
            "prompt": "".join(rng.choices("abcdefgh ", k=rng.randint(1, 200))),
            "max_tokens": rng.randint(2, 40),
            "temperature": rng.choice([0, 1]),
            "seed": index,
            "ignore_eos": True,
        }
        for index in range(20)
    ]
    limits = httpx.Limits(max_connections=200)

    async def scenario() -> None:
        async with httpx.AsyncClient(timeout=60, limits=limits) as client:
            url = f"{served.url}/v1/completions"

            async def complete(body: dict[str, Any]) -> str:
                answer = await client.post(url, json=body)
                assert answer.status_code == 200, answer.text
                return str(answer.json()["choices"][0]["text"])

            async def leave(body: dict[str, Any]) -> None:
                async with client.stream("POST", url, json={**body, "stream": True}) as answer:
                    await anext(answer.aiter_lines())

            alone = [await complete(body) for body in bodies]
            together = await asyncio.gather(
                *(leave(bodies[i % 20]) if i % 3 == 0 else complete(bodies[i % 20])
                  for i in range(200))
            )  # fmt: skip
            for index, text in enumerate(together):
                assert text is None or text == alone[index % 20]
        await until_idle(served)

    asyncio.run(scenario())


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_ends_its_sequence(served: RunningApp, stream: bool):
    body = {"messages": HELLO, "stream": stream, **ENDLESS}

    async def scenario() -> None:
        async with httpx.AsyncClient() as client:
            with suppress(httpx.ReadTimeout):
                async with client.stream(
                    "POST", f"{served.url}/v1/chat/completions", json=body, timeout=0.15
                ) as answer:
                    await anext(answer.aiter_lines())
        await until_idle(served)

    before = served.figures()["generation_tokens_total"]
    asyncio.run(scenario())
    assert served.figures()["generation_tokens_total"] - before < ENDLESS["max_tokens"]


def test_figures_name_the_replica(served: RunningApp):
    text = httpx.get(f"{served.url}/metrics", timeout=10).text
    assert 'rtp_serve:num_requests_running{replica="' in text
    assert text.count("# TYPE rtp_serve:num_requests_running gauge") == 1


def test_an_ingress_tells_how_busy_it_is(served: RunningApp):
    async def scenario() -> None:
        async with asyncio.timeout(10), httpx.AsyncClient() as http:
            while True:
                (ingress,) = (await http.get(f"{served.url}/autoscaling")).json()["present"] or [{}]
                if ingress and not ingress["numbers"]["num_silent"]:
                    break
                await asyncio.sleep(0.2)
        assert (ingress["role"], ingress["num_replicas"]) == ("ingress", 1)
        assert 0 < ingress["numbers"]["cores"] < 2

    asyncio.run(scenario())


def test_the_ingress_has_no_torch(served: RunningApp):
    (ingress,) = served.pids("Ingress")
    (replica,) = served.pids("EngineReplica")
    assert "libtorch" not in Path(f"/proc/{ingress}/maps").read_text()
    assert "libtorch" in Path(f"/proc/{replica}/maps").read_text()


def test_python_callers_get_whole_answers(served: RunningApp):
    body = {"messages": HELLO, "max_tokens": 8, "temperature": 0, "ignore_eos": True}
    over_http = chat(served).json()
    assert served.handle.chat.remote(body).result()["choices"] == over_http["choices"]
    prompt = {"prompt": "abc", "max_tokens": 8, "temperature": 0, "ignore_eos": True}
    assert served.handle.generate.remote(prompt).result()["usage"]["completion_tokens"] == 8


@pytest.mark.parametrize("method", ["chat_stream", "generate_stream"])
def test_python_callers_get_streams_in_few_pieces(served: RunningApp, method: str):
    prompt = {"messages": HELLO} if method == "chat_stream" else {"prompt": "abc"}
    body = {**prompt, **ENDLESS, "max_tokens": 400, "stream_options": {"include_usage": True}}
    handle: DeploymentHandle = getattr(served.handle.options(stream=True), method)
    chunks = list(handle.remote(body))
    assert chunks[-1]["usage"]["completion_tokens"] == 400
    assert len(chunks) < 200


def test_python_callers_get_our_errors(served: RunningApp):
    with pytest.raises(InvalidRequest, match="temperature"):
        served.handle.chat.remote({"messages": HELLO, "temperature": -1}).result()


RESUMABLE = {
    "greedy": {"temperature": 0},
    "seeded": {"temperature": 1, "seed": 5, "frequency_penalty": 0.5, "logprobs": 2},
    "two": {"temperature": 1, "seed": 6, "n": 2, "stop": ["no such text"]},
}


def text_and_usage(
    served: RunningApp, body: dict[str, Any], victim: int | None
) -> tuple[list[str], list[Any], dict[str, int]]:
    """A streamed answer, whose replica is killed after its first chunk if there is a victim."""
    texts, logprobs, usage = [""] * body.get("n", 1), [], {}
    body = {**body, "stream": True, "stream_options": {"include_usage": True}}
    url = f"{served.url}/v1/completions"
    with httpx.stream("POST", url, json=body, timeout=60) as response:
        for event in events(response):
            assert "error" not in event, event
            if victim is not None:
                os.kill(victim, signal.SIGKILL)
                victim = None
            usage = event["usage"] or usage
            for choice in event["choices"]:
                texts[choice["index"]] += choice["text"]
                logprobs += (choice["logprobs"] or {}).get("token_logprobs", [])
    return texts, logprobs, usage


@pytest.mark.parametrize("name", RESUMABLE)
def test_a_stream_outlives_its_replica(served: RunningApp, name: str):
    # Salted, as a prefix is shared to the token: "hello " would be found of another name's prompt.
    body = {"prompt": f"hello {name}", "cache_salt": name, "max_tokens": 2000, "ignore_eos": True}
    body |= RESUMABLE[name]
    before = served.figures().get("time_to_resume_seconds_count", 0)
    (victim,) = served.pids("EngineReplica")
    interrupted = text_and_usage(served, body, victim)
    assert served.figures()["time_to_resume_seconds_count"] == before + 1
    whole = text_and_usage(served, body, None)
    # Only what was cached of the prompt differs: the first replica's, whatever a later one found.
    assert interrupted[2].pop("prompt_tokens_details")["cached_tokens"] == 0
    whole[2].pop("prompt_tokens_details")
    assert interrupted == whole


def test_a_whole_answer_outlives_its_replica(served: RunningApp):
    body = {"messages": HELLO, **ENDLESS}
    (victim,) = served.pids("EngineReplica")
    before = served.figures()["generation_tokens_total"]
    with ThreadPoolExecutor(1) as threads:
        answering = threads.submit(chat, served, **body)
        while served.figures()["generation_tokens_total"] == before:
            pass
        os.kill(victim, signal.SIGKILL)
        answer = answering.result()
    assert answer.status_code == 200
    assert answer.json()["choices"] == chat(served, **body).json()["choices"]


def test_a_wrong_argument_given_to_serve_itself_starts_nothing(session: RaySession):
    application = {
        "name": "wrong",
        "route_prefix": "/wrong",
        "import_path": "deployments.aggregated:app",
        "args": {"engin": {}},
    }
    schema = ServeDeploySchema.model_validate({"applications": [application]})
    try:
        _get_global_client().deploy_apps(schema)
        while serve.status().applications["wrong"].status == "DEPLOYING":
            threading.Event().wait(0.1)
        overview = serve.status().applications["wrong"]
        assert overview.status == "DEPLOY_FAILED"
        assert "unknown key 'engin' in AppConfig; did you mean 'engine'?" in overview.message
        assert not overview.deployments
    finally:
        serve.delete("wrong")


def test_a_handle_can_be_had_by_the_application_name(served: RunningApp):
    answer = serve.get_app_handle("rtp-serve").chat.remote({"messages": HELLO, "max_tokens": 3})
    assert answer.result()["object"] == "chat.completion"
