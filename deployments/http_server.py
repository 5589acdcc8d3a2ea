"""HTTP from an ingress itself, where Serve runs no proxy.

A proxy hands every chunk of a stream through an actor call, which costs both processes most of a
millisecond of CPU a token, on cores that the engine computes with.
"""

import asyncio
import logging
import socket
from collections.abc import Iterator
from contextlib import suppress

import uvicorn
from ray.serve.config import HTTPOptions
from starlette.types import ASGIApp

from rtp_serve.errors import ConfigError

_TICK_S = 1.0

_IDLE_S = 2.0
"""Once a server is to close, a connection may be idle for so long. One that is closed at once may
have a request on its way."""

_POLL_S = 0.05


class HttpServer:
    """An ASGI application on a port of this process; belongs to one event loop."""

    def __init__(self, app: ASGIApp, options: HTTPOptions) -> None:
        """Binds. Raises ConfigError when another user or program has the port."""
        logging.getLogger("uvicorn.error").setLevel(logging.WARNING)
        self._socket = _bind(options.host, options.port)
        self._server = _Server(
            uvicorn.Config(
                app,
                root_path=options.root_path,
                timeout_keep_alive=options.keep_alive_timeout_s,
                ssl_keyfile=options.ssl_keyfile,
                ssl_certfile=options.ssl_certfile,
                ssl_keyfile_password=options.ssl_keyfile_password,
                ssl_ca_certs=options.ssl_ca_certs,
                ws="none",
                lifespan="off",
                access_log=False,
                log_config=None,
            )
        )
        self._serving = asyncio.create_task(self._server.serve(sockets=[self._socket]))

    async def close(self) -> None:
        """Take no more connections, and return when the open requests are answered. What clients
        ask meanwhile on connections that they have is answered, too, and is the last there."""
        self._server.stop()
        await self._serving


class _Server(uvicorn.Server):
    """Looks once a second what time it is, for the headers; uvicorn itself does it ten times."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self._stopping = asyncio.Event()

    def stop(self) -> None:
        self.should_exit = True
        self._stopping.set()

    async def main_loop(self) -> None:
        while not await self.on_tick(0):
            with suppress(TimeoutError):
                await asyncio.wait_for(self._stopping.wait(), _TICK_S)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        last = (b"connection", b"close")
        self.server_state.default_headers = [*self.server_state.default_headers, last]
        # With the listener the kernel would break those off that nobody has accepted.
        waiting = [each for listener in sockets or () for each in _accepted(listener)]
        for server in self.servers:
            server.close()
        loop = asyncio.get_running_loop()
        await asyncio.gather(
            *(
                loop.connect_accepted_socket(self._protocol, each, ssl=self.config.ssl)
                for each in waiting
            ),
            return_exceptions=True,  # of clients that have left
        )
        with suppress(TimeoutError):
            async with asyncio.timeout(_IDLE_S):
                while self.server_state.connections:
                    await asyncio.sleep(_POLL_S)
        await super().shutdown(sockets)

    def _protocol(self) -> asyncio.Protocol:
        make = self.config.http_protocol_class
        # Typed as a class of asyncio's, whose constructor takes nothing; uvicorn's take these.
        return make(self.config, self.server_state, self.lifespan.state)  # type: ignore[call-arg]


def _accepted(listener: socket.socket) -> Iterator[socket.socket]:
    """All connections that wait."""
    with suppress(BlockingIOError):
        while True:
            connection, _ = listener.accept()
            yield connection


def _bind(host: str, port: int) -> socket.socket:
    """A socket that the ingresses of a node share, as Serve's proxies do; the kernel deals out
    connections, so that one can be replaced while others serve."""
    listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    try:
        listener.bind((host, port))
    except OSError as error:
        listener.close()
        raise ConfigError(f"cannot listen on {host} port {port}: {error.strerror}") from error
    return listener
