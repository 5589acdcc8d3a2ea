"""Streams that a client resumes by their request id after its connection broke."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
from starlette.applications import Starlette

from rtp_serve.api.completion import CompletionService
from rtp_serve.api.service import answer_stream
from rtp_serve.config.api import ApiKey, AuthConfig, KeptStreamsConfig
from rtp_serve.errors import EngineDead, UnsupportedParameter
from tests.unit.api.asgi import RawRequest
from tests.unit.api.serving import (
    HELLO,
    chat_text,
    digest,
    make_app,
    make_context,
    make_engine,
    read_events,
)

CHAT = "/v1/chat/completions"
RESUMABLE = HELLO | {"stream": True, "stream_options": {"resumable": True}}
TEXT = "Hello there."


def play(scenario: Callable[[], Coroutine[None, None, None]]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(10):
            await scenario()

    asyncio.run(bounded())


def post(app: Starlette, name: str = "mine", **headers: str) -> tuple[RawRequest, Any]:
    request = RawRequest(CHAT, RESUMABLE, {"x-request-id": name} | headers)
    return request, request.start(app)


async def get(
    app: Starlette, after: int | str | None = None, name: str = "mine", **headers: str
) -> RawRequest:
    if after is not None:
        headers["last-event-id"] = str(after)
    request = RawRequest(f"/v1/streams/{name}", b"", headers, method="GET")
    await request.start(app)
    return request


async def delete(app: Starlette, name: str = "mine") -> RawRequest:
    request = RawRequest(f"/v1/streams/{name}", b"", method="DELETE")
    await request.start(app)
    return request


def numbered(text: str) -> tuple[list[int], list[Any]]:
    """Numbers and chunks of the events of a stream that is [DONE]."""
    events = [event.split("\n") for event in text.split("\n\n") if event]
    numbers = [int(number.removeprefix("id: ")) for number, _ in events]
    return numbers, read_events("\n\n".join(data for _, data in events))


async def until_forgotten(app: Starlette) -> None:
    while (await get(app)).status != 404:
        await asyncio.sleep(0)


def code_of(request: RawRequest) -> Any:
    return read_error(request)["code"]


def read_error(request: RawRequest) -> Any:
    import json

    return json.loads(request.text)["error"]


def test_a_whole_stream_is_numbered_from_one_and_can_be_read_again():
    async def scenario() -> None:
        app = make_app(make_engine(TEXT))
        request, running = post(app)
        await running
        numbers, chunks = numbered(request.text)
        assert numbers == list(range(1, len(numbers) + 1))
        assert chat_text(chunks) == TEXT
        for after in (None, 0, 3, len(numbers)):
            again = await get(app, after)
            assert again.status == 200
            assert again.text == "".join(
                event + "\n\n" for event in request.text.split("\n\n")[after or 0 : -1]
            )

    play(scenario)


def test_a_client_that_lost_its_connection_gets_the_rest_and_what_is_to_come():
    async def scenario() -> None:
        engine = make_engine(TEXT, stall_after=4)
        app = make_app(engine)
        first, running = post(app)
        await engine.has_stalled.wait()
        first.leave()
        await running
        assert engine.open_ids, "the stream goes on"
        second = RawRequest("/v1/streams/mine", b"", {"last-event-id": "2"}, method="GET")
        resuming = second.start(app)
        await second.has_sent.wait()
        engine.go_on.set()
        await resuming
        numbers, chunks = numbered(second.text)
        assert numbers == list(range(3, numbers[-1] + 1))
        seen = first.text.split("\n\n")[:2]
        told = [event.split("data: ")[1] for event in seen]
        assert chat_text(read_events("\n\n".join([*told, "data: [DONE]"])) + chunks) == TEXT
        assert not engine.open_ids

    play(scenario)


def test_a_stream_that_nobody_reads_is_aborted_after_the_grace_period():
    async def scenario() -> None:
        engine = make_engine(stall_after=2)
        app = make_app(engine, streams=KeptStreamsConfig(grace_s=0.02))
        request, running = post(app)
        await engine.has_stalled.wait()
        request.leave()
        await running
        while engine.open_ids:
            await asyncio.sleep(0)
        await until_forgotten(app)

    play(scenario)


def test_a_reader_that_came_back_keeps_it_running():
    async def scenario() -> None:
        engine = make_engine(stall_after=2)
        app = make_app(engine, streams=KeptStreamsConfig(grace_s=0.05))
        request, running = post(app)
        await engine.has_stalled.wait()
        request.leave()
        await running
        reader = RawRequest("/v1/streams/mine", b"", method="GET")
        reading = reader.start(app)
        await asyncio.wait((reading,), timeout=0.15)
        assert engine.open_ids
        engine.go_on.set()
        await reading

    play(scenario)


def test_what_is_over_is_forgotten_after_a_while():
    async def scenario() -> None:
        app = make_app(streams=KeptStreamsConfig(keep_s=0.02))
        _, running = post(app)
        await running
        await until_forgotten(app)

    play(scenario)


@pytest.mark.parametrize("with_keys", [True, False])
def test_another_tenants_stream_is_not_found(with_keys: bool):
    keys = tuple(ApiKey(name=name, sha256=digest(name)) for name in ("alice", "bob"))
    alice, bob = ({"authorization": f"Bearer {name}"} for name in ("alice", "bob"))

    async def scenario() -> None:
        app = make_app(auth=AuthConfig(api_keys=keys if with_keys else ()))
        _, running = post(app, **alice)
        await running
        answer = await get(app, **bob)
        assert answer.status == (404 if with_keys else 200)
        if with_keys:
            assert code_of(answer) == "stream_not_found"
            assert (await get(app)).status == 401
            _, running = post(app, **bob)
            await running
        assert (await get(app, **alice)).status == 200

    play(scenario)


def test_the_same_request_id_again_is_refused_and_generates_nothing():
    async def scenario() -> None:
        engine = make_engine()
        app = make_app(engine)
        _, running = post(app)
        await running
        again, running = post(app)
        await running
        assert (again.status, code_of(again)) == (409, "stream_exists")
        assert len(engine.requests) == 1

    play(scenario)


@pytest.mark.parametrize(
    ("after", "status"), [("99", 400), ("-1", 400), ("x", 400), ("", 400), ("1" * 30, 400)]
)
def test_a_number_that_no_event_has_is_refused(after: str, status: int):
    async def scenario() -> None:
        app = make_app()
        _, running = post(app)
        await running
        answer = await get(app, after)
        assert answer.status == status
        assert read_error(answer)["param"] == "last-event-id"

    play(scenario)


def test_only_the_last_bytes_are_kept():
    async def scenario() -> None:
        app = make_app(make_engine("a long answer " * 9), streams=KeptStreamsConfig(max_bytes=2000))
        request, running = post(app)
        await running
        numbers, _ = numbered(request.text)
        gone = await get(app, 1)
        assert (gone.status, code_of(gone)) == (410, "stream_events_gone")
        rest = await get(app, numbers[-1] - 3)
        assert numbered(rest.text)[0] == numbers[-3:]

    play(scenario)


def test_a_new_stream_takes_the_place_of_one_that_is_over_and_of_no_other():
    async def scenario() -> None:
        engine = make_engine(TEXT, stall_after=2)
        app = make_app(engine, streams=KeptStreamsConfig(max_streams=1))
        _, running = post(app, "one")
        await engine.has_stalled.wait()
        refused, refusing = post(app, "two")
        await refusing
        assert (refused.status, code_of(refused)) == (429, "overloaded")
        engine.go_on.set()
        await running
        third, running = post(app, "three")
        await running
        assert third.status == 200
        assert (await get(app, name="one")).status == 404
        assert (await get(app, name="three")).status == 200

    play(scenario)


def test_a_stream_can_be_ended_at_once():
    async def scenario() -> None:
        engine = make_engine(stall_after=2)
        app = make_app(engine)
        request, running = post(app)
        await engine.has_stalled.wait()
        assert (await delete(app)).status == 204
        await running
        assert "stream_not_found" in request.text
        assert not engine.open_ids
        assert (await get(app)).status == 404
        assert (await delete(app)).status == 404

    play(scenario)


def test_an_error_ends_it_for_everybody_who_reads_it():
    async def scenario() -> None:
        app = make_app(make_engine(failure=EngineDead("gone"), fail_after=3))
        request, running = post(app)
        await running
        for answer in (request, await get(app, 1)):
            *_, error, done = [event for event in answer.text.split("\n\n") if event]
            assert "engine_unavailable" in error
            assert done == "data: [DONE]"

    play(scenario)


def test_an_error_before_the_first_event_has_a_status_and_leaves_nothing():
    async def scenario() -> None:
        engine = make_engine(failure=EngineDead("gone"))
        app = make_app(engine)
        request, running = post(app)
        await running
        assert request.status == 503
        engine.failure = None
        again, running = post(app)
        await running
        assert again.status == 200

    play(scenario)


def test_it_takes_no_longer_than_a_request_may():
    async def scenario() -> None:
        engine = make_engine(stall_after=2)
        app = make_app(engine, limits={"request_timeout_s": 0.05})
        request, running = post(app)
        await running
        assert "timeout" in request.text
        while engine.open_ids:
            await asyncio.sleep(0)

    play(scenario)


def test_streams_that_do_not_ask_are_not_kept():
    async def scenario() -> None:
        app = make_app()
        request = RawRequest(CHAT, HELLO | {"stream": True}, {"x-request-id": "mine"})
        await request.start(app)
        assert "id: 1" not in request.text
        assert (await get(app)).status == 404

    play(scenario)


def test_where_none_are_kept_a_resumable_one_is_refused():
    async def scenario() -> None:
        app = make_app(streams=KeptStreamsConfig(max_streams=0))
        request, running = post(app)
        await running
        assert (request.status, code_of(request)) == (400, "unsupported_parameter")
        assert read_error(request)["param"] == "stream_options.resumable"

    play(scenario)


def test_python_callers_have_no_connection_to_lose():
    async def scenario() -> None:
        service = CompletionService(make_context())
        chunks = answer_stream(service, {"prompt": "a", "stream_options": {"resumable": True}})
        with pytest.raises(UnsupportedParameter, match="over HTTP"):
            await anext(chunks)

    play(scenario)
