"""Calls to the Master from one event loop. They come to an end, whatever the Master does.

    Ray, once a Master    find or start the actor, ask for its address ──► channel
    channel, every call   question ──► answer

Ray's own call takes milliseconds where a socket takes a part of one; and a socket tells at once
that the process behind it has ended.
"""

import asyncio
from collections.abc import Callable

from ray.actor import ActorHandle
from ray.exceptions import RayError, RayTaskError

from deployments.channels.dialer import TcpNeeded
from deployments.channels.framing import WireError
from deployments.master.channel import MasterChannel, MasterSilent, master_dialer
from deployments.master.channel_wire import Method, decode_address

_ADDRESS_TIMEOUT_S = 15.0
"""The Master's process may have to start."""


class MasterConnection:
    """Has a channel once the actor was found."""

    def __init__(self, find_or_start: Callable[[], ActorHandle], node_id: str) -> None:
        """`node_id` is Ray's for the node of this process."""
        self._find_or_start = find_or_start
        self._node_id = node_id
        self._dialer = master_dialer(node_id)
        self._channel: MasterChannel | None = None

    async def find(self) -> None:
        """Find the actor, or start it, and dial it: the one that was found may have ended for
        good. Raises MasterSilent."""
        try:
            actor = await asyncio.to_thread(self._find_or_start)
            async with asyncio.timeout(_ADDRESS_TIMEOUT_S):
                address = decode_address(await actor.address.remote(self._node_id))
            self._channel = await self._dialer.connect(address)
        except (RayError, ValueError, WireError, TcpNeeded, OSError) as error:
            raise MasterSilent(_reason(error)) from error

    async def ask(self, method: Method, data: bytes = b"", *, timeout_s: float) -> bytes:
        """What a method of the Master returns. Raises MasterSilent."""
        if self._channel is None:
            raise MasterSilent("it was not found yet")
        try:
            async with asyncio.timeout(timeout_s):
                return await self._channel.ask(method, data)
        except TimeoutError as error:
            raise MasterSilent(f"no answer within {timeout_s:g} s") from error

    def tell(self, method: Method, data: bytes) -> None:
        """Without waiting, and without knowing whether it is heard."""
        if self._channel is not None:
            self._channel.tell(method, data)

    def close(self) -> None:
        """Leave."""
        self._dialer.close()


def _reason(error: Exception) -> str:
    """One line."""
    cause = error.cause if isinstance(error, RayTaskError) else error
    first_line, _, _ = str(cause).partition("\n")
    return f"{type(cause).__name__}: {first_line}"
