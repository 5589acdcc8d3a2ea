"""HTTP from an ingress itself, where Serve runs no proxy.

A proxy hands every chunk of a stream through an actor call, which costs both processes most of a
millisecond of CPU a token, on cores that the engine computes with.
"""

import asyncio
import logging
import socket
from contextlib import suppress

import uvicorn
from ray.serve.config import HTTPOptions
from starlette.types import ASGIApp

from rtp_serve.errors import ConfigError

_TICK_S = 1.0


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
        """Take no more connections, and return when the open requests are answered."""
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
