"""Channels to processes that listen: each is dialled once, by whoever needs it first."""

import asyncio
import socket
from collections.abc import Callable
from typing import Generic, TypeVar

from deployments.channels.address import ChannelAddress
from deployments.channels.dialled import DialledChannel
from deployments.channels.door import connect

CONNECT_TIMEOUT_S = 5.0


class TcpNeeded(Exception):
    """The process is on another node and gave no TCP address."""


C = TypeVar("C", bound=DialledChannel)


class Dialer(Generic[C]):
    """The channels of one process, one for each that it dials; for one event loop."""

    def __init__(self, node_id: str, make_channel: Callable[[Callable[[], None]], C]) -> None:
        """`make_channel` takes what is to be called when the channel is lost."""
        self._node_id = node_id
        self._make_channel = make_channel
        self._dials: dict[str, asyncio.Task[C]] = {}

    async def connect(self, address: ChannelAddress) -> C:
        """The channel to that process, dialled if need be.

        Raises TcpNeeded, or OSError (TimeoutError too) when it cannot be reached.
        """
        dial = self._dials.get(address.unix_name)
        if dial is None:
            if address.node_id != self._node_id and address.tcp_host is None:
                raise TcpNeeded
            dial = asyncio.create_task(self._dial(address))
            self._dials[address.unix_name] = dial
        try:
            # Several calls wait for one dial; a cancelled one must not take it along.
            return await asyncio.shield(dial)
        except OSError:
            if self._dials.get(address.unix_name) is dial:
                self._forget(address)
            raise

    async def _dial(self, address: ChannelAddress) -> C:
        loop = asyncio.get_running_loop()

        def make_channel() -> C:
            return self._make_channel(lambda: self._forget(address))

        async with asyncio.timeout(CONNECT_TIMEOUT_S):
            connection = await connect(address, self._node_id)
            if connection.family == socket.AF_UNIX:
                _, channel = await loop.create_unix_connection(make_channel, sock=connection)
            else:
                _, channel = await loop.create_connection(make_channel, sock=connection)
        channel.greet(address)
        return channel

    def _forget(self, address: ChannelAddress) -> None:
        self._dials.pop(address.unix_name, None)

    def close(self) -> None:
        """Close every channel."""
        for dial in list(self._dials.values()):
            if dial.done() and not dial.cancelled() and dial.exception() is None:
                dial.result().close("this process needs it no more")
            dial.cancel()
