"""The ingress as its own HTTP server."""

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx
import pytest
from ray.serve.config import HTTPOptions
from starlette.types import ASGIApp, Receive, Scope, Send

from deployments.http_server import HttpServer
from rtp_serve.errors import ConfigError
from tests.deployments.applications import free_port


class Halting:
    """Answers in two parts, the second one when it may."""

    def __init__(self) -> None:
        self.may_end = asyncio.Event()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"one ", "more_body": True})
        await self.may_end.wait()
        await send({"type": "http.response.body", "body": b"two", "more_body": False})


@asynccontextmanager
async def serving(app: ASGIApp, port: int) -> AsyncIterator[HttpServer]:
    server = HttpServer(app, HTTPOptions(host="127.0.0.1", port=port))
    try:
        yield server
    finally:
        await server.close()


def test_parts_come_as_they_are_made_and_closing_waits_for_the_rest():
    async def scenario() -> None:
        app, port = Halting(), free_port()
        async with serving(app, port) as server, httpx.AsyncClient() as client:
            async with client.stream("GET", f"http://127.0.0.1:{port}/") as answer:
                parts = answer.aiter_bytes()
                assert await anext(parts) == b"one "
                closing = asyncio.create_task(server.close())
                with pytest.raises(TimeoutError):
                    await asyncio.wait_for(asyncio.shield(closing), 0.3)
                app.may_end.set()
                assert [part async for part in parts] == [b"two"]
            await asyncio.wait_for(closing, 5)
            with pytest.raises(httpx.ConnectError):
                await client.get(f"http://127.0.0.1:{port}/")

    asyncio.run(scenario())


def test_ingresses_of_a_node_share_the_port():
    async def scenario() -> None:
        app, port = Halting(), free_port()
        app.may_end.set()
        async with serving(app, port), httpx.AsyncClient() as client:
            async with serving(app, port):
                pass
            assert (await client.get(f"http://127.0.0.1:{port}/")).text == "one two"

    asyncio.run(scenario())


def test_a_port_of_another_program_is_named():
    async def scenario() -> None:
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            taken.listen()
            port = taken.getsockname()[1]
            with pytest.raises(ConfigError, match=f"cannot listen on 127.0.0.1 port {port}"):
                HttpServer(Halting(), HTTPOptions(host="127.0.0.1", port=port))

    asyncio.run(scenario())
