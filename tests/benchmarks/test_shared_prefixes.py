import asyncio
from collections.abc import Awaitable, Callable
from random import Random

import httpx
import pytest
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from benchmarks.routing_faults import hits_lost
from benchmarks.servers import free_port
from benchmarks.shared_prefixes import (
    Answer,
    Arrival,
    SharedPrefixes,
    num_cached_tokens,
    play,
    ttfts_s,
)
from rtp_serve.errors import RtpServeError

ARRIVAL = Arrival(0.0, (1, 2, 3), 4)


def test_equal_orders_ask_the_same_assistants_at_the_same_times_for_something_new():
    load = SharedPrefixes.drawn(Random(1), num_assistants=3, num_tokens=5)
    ids = Random(2)
    first, second = (load.arrivals(Random(3), ids) for _ in range(2))
    assert [each.after_s for each in first] == [each.after_s for each in second]
    assert [each.prompt[:5] for each in first] == [each.prompt[:5] for each in second]
    assert {each.prompt[:5] for each in first} == set(load.instructions)
    assert all(a.prompt[5:] != b.prompt[5:] for a, b in zip(first, second, strict=True))


def test_hits_are_lost_against_the_same_requests():
    def answers(*cached: int) -> list[Answer]:
        return [Answer(0.0, 0.1, each, 1, "") for each in cached]

    assert hits_lost(answers(512, 512), answers(512, 256)) == pytest.approx(0.25)
    assert hits_lost(answers(512), answers(512)) == 0.0


@pytest.mark.parametrize("num_tokens", [4, 3])
def test_an_answer_is_whole_or_has_failed(num_tokens: int):
    async def stream(request: Request) -> Response:
        body = await request.json()
        assert body["prompt"] == [1, 2, 3]
        details = f'"prompt_tokens_details": {{"cached_tokens": {len(body["prompt"]) - 1}}}'
        usage = f'{{"completion_tokens": {num_tokens}, {details}}}'
        return Response(
            f'data: {{"usage": null}}\n\ndata: {{"usage": {usage}}}\n\ndata: [DONE]\n\n'
        )

    (answer,) = asyncio.run(_played(stream))
    if num_tokens == ARRIVAL.output_tokens:
        assert ttfts_s([answer])[0] > 0
        assert num_cached_tokens([answer]) == 2
    else:
        with pytest.raises(RtpServeError, match="ended early"):
            ttfts_s([answer])


def test_who_is_refused_does_not_come_again():
    async def refuse(request: Request) -> Response:
        return Response("no", 503)

    (answer,) = asyncio.run(_played(refuse, num_tries=5))
    assert (answer.num_tries, answer.failure) == (1, "503: b'no'")


def test_who_has_lost_its_connection_does():
    url = f"http://127.0.0.1:{free_port()}"  # nobody listens there
    (answer,) = asyncio.run(play(url, [ARRIVAL], num_tries=3))
    assert answer.num_tries == 3
    assert httpx.ConnectError.__name__ in answer.failure


async def _played(
    endpoint: Callable[[Request], Awaitable[Response]], num_tries: int = 1
) -> list[Answer]:
    port = free_port()
    app = Starlette(routes=[Route("/v1/completions", endpoint, methods=["POST"])])
    server = uvicorn.Server(uvicorn.Config(app, port=port, log_level="error"))
    serving = asyncio.create_task(server.serve())
    while not server.started:
        await asyncio.sleep(0.01)
    answers = await play(f"http://127.0.0.1:{port}", [ARRIVAL], num_tries)
    server.should_exit = True
    await serving
    return answers
