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
        while not server._server.started:
            await asyncio.sleep(0)
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


REQUEST = b"GET / HTTP/1.1\r\nhost: here\r\n\r\n"


def test_a_connection_that_is_kept_can_be_used_until_it_is_told_that_it_ends():
    async def scenario() -> None:
        app, port = Halting(), free_port()
        app.may_end.set()
        async with serving(app, port) as server:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(REQUEST)
            first = await reader.readuntil(b"0\r\n\r\n")
            closing = asyncio.create_task(server.close())
            await asyncio.sleep(0.5)
            writer.write(REQUEST)
            last = await reader.read()  # to its end
            await asyncio.wait_for(closing, 1)
            writer.close()
        assert b"connection: close" not in first
        assert b"connection: close" in last
        assert last.endswith(b"3\r\ntwo\r\n0\r\n\r\n")

    asyncio.run(scenario())


def test_one_that_nobody_uses_is_closed():
    async def scenario() -> None:
        async with serving(Halting(), port := free_port()) as server:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            await asyncio.wait_for(server.close(), 5)
            assert await reader.read() == b""
            writer.close()

    asyncio.run(scenario())


def test_connections_that_nobody_has_accepted_are_answered(monkeypatch: pytest.MonkeyPatch):
    async def scenario() -> None:
        app, port = Halting(), free_port()
        app.may_end.set()
        async with serving(app, port) as server:
            clients: list[socket.socket] = []

            async def ask_at_the_last_moment(counter: int) -> bool:
                if server._server.should_exit:
                    for _ in range(3):
                        clients.append(socket.create_connection(("127.0.0.1", port)))
                        clients[-1].sendall(REQUEST)
                return server._server.should_exit

            monkeypatch.setattr(server._server, "on_tick", ask_at_the_last_moment)
            await server.close()
            assert len(clients) == 3
            for client in clients:
                with client:
                    assert client.recv(4096).startswith(b"HTTP/1.1 200 OK")

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
