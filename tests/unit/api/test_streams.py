"""Clients that leave or stop reading, and errors after the first byte."""

import asyncio
from typing import Any

import pytest

from rtp_serve.engine.request import FinishReason
from rtp_serve.errors import EngineDead, Overloaded
from tests.unit.api.asgi import RawRequest
from tests.unit.api.scripted_engine import ScriptedEngine
from tests.unit.api.serving import HELLO, make_app, make_client, make_engine, read_events

CHAT = "/v1/chat/completions"
COMPLETION = "/v1/completions"
MANY = {"prompt": ["a", "b"], "n": 2}


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize(("path", "body"), [(CHAT, HELLO), (COMPLETION, MANY)])
@pytest.mark.parametrize("stall_after", [0, 3])
def test_a_client_that_leaves_closes_the_engines_generator_at_once(
    path: str, body: dict[str, Any], stream: bool, stall_after: int
):
    async def scenario() -> None:
        engine = make_engine(stall_after=stall_after)
        request = RawRequest(path, body | {"stream": stream})
        running = request.start(make_app(engine))
        await engine.has_stalled.wait()
        assert engine.open_ids
        request.leave()
        await asyncio.wait_for(running, 5)
        assert not engine.open_ids

    asyncio.run(scenario())


@pytest.mark.parametrize("stream", [True, False])
def test_a_server_that_cancels_closes_the_engines_generator(stream: bool):
    async def scenario() -> None:
        engine = make_engine(stall_after=2)
        running = RawRequest(CHAT, HELLO | {"stream": stream}).start(make_app(engine))
        await engine.has_stalled.wait()
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        assert not engine.open_ids

    asyncio.run(scenario())


def test_the_first_delta_is_sent_before_the_second_is_there():
    async def scenario() -> None:
        engine = make_engine(stall_after=1)
        request = RawRequest(CHAT, HELLO | {"stream": True})
        running = request.start(make_app(engine))
        await engine.has_stalled.wait()
        assert '"content":"H"' in request.text
        request.leave()
        await running

    asyncio.run(scenario())


def test_a_client_that_does_not_read_holds_up_the_stream_and_is_dropped_in_the_end():
    async def scenario() -> None:
        engine = make_engine("a long answer " * 10)
        app = make_app(engine, limits={"client_stall_timeout_s": 0.05})
        request = RawRequest(CHAT, HELLO | {"stream": True})
        running = request.start(app)
        await request.has_sent.wait()
        request.can_write.clear()
        await asyncio.wait_for(running, 5)
        assert engine.num_given < 30, "nothing is pulled that cannot be sent"
        assert not engine.open_ids

    asyncio.run(scenario())


@pytest.mark.parametrize("stream", [True, False])
def test_a_request_that_takes_too_long_is_aborted_with_408(stream: bool):
    engine = make_engine(stall_after=0)
    client = make_client(engine, limits={"request_timeout_s": 0.05})
    response = client.post(CHAT, json=HELLO | {"stream": stream})
    assert response.status_code == 408
    assert response.json()["error"]["code"] == "timeout"
    assert not engine.open_ids


def post_stream(engine: ScriptedEngine, **app: Any) -> Any:
    return make_client(engine, **app).post(CHAT, json=HELLO | {"stream": True})


@pytest.mark.parametrize(
    ("failure", "code", "words"),
    [
        (EngineDead("10.0.0.7 went away"), "engine_unavailable", "try again"),
        (RuntimeError("secret path /etc"), None, "internal error"),
    ],
)
def test_an_error_after_the_first_chunk_is_an_event_and_then_done(
    failure: Exception, code: str | None, words: str
):
    response = post_stream(make_engine(failure=failure, fail_after=3))
    assert response.status_code == 200
    *chunks, last = read_events(response.text)
    assert len(chunks) == 4
    assert last["error"]["code"] == code
    assert words in last["error"]["message"]
    assert str(failure) not in response.text


def test_a_timeout_after_the_first_chunk_is_an_event_and_then_done():
    response = post_stream(make_engine(stall_after=2), limits={"request_timeout_s": 0.05})
    assert read_events(response.text)[-1]["error"]["code"] == "timeout"


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize(
    ("failure", "status", "retry_after"),
    [
        (Overloaded("9 requests are waiting", retry_after_s=7), 429, "7"),
        (EngineDead("10.0.0.7 went away"), 503, "2"),
        (RuntimeError("secret path /etc"), 500, None),
    ],
)
def test_an_error_before_the_first_chunk_has_a_status_of_its_own(
    failure: Exception, status: int, retry_after: str | None, stream: bool
):
    client = make_client(make_engine(failure=failure))
    response = client.post(CHAT, json=HELLO | {"stream": stream})
    assert response.status_code == status
    assert response.headers.get("retry-after") == retry_after
    if status >= 500:
        assert str(failure) not in response.text
    else:
        assert response.json()["error"]["message"] == "9 requests are waiting"
        assert response.json()["error"]["type"] == "rate_limit_error"


@pytest.mark.parametrize(("last", "status"), [(FinishReason.ERROR, 500), (FinishReason.ABORT, 503)])
def test_a_sequence_the_engine_gives_up_is_an_error_without_its_text(
    last: FinishReason, status: int
):
    response = make_client(make_engine(last=last)).post(CHAT, json=HELLO)
    assert response.status_code == status
    assert "0x7f00" not in response.text
