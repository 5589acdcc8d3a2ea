"""Where a process waits for others of its application: a Unix socket, and TCP if need be.

Who connects must say the secret that a control call has brought it, in its first frame.
"""

import asyncio
import secrets
import socket
from collections.abc import Callable

from deployments.channels.address import SECRET_BYTES, ChannelAddress
from deployments.channels.sockets import is_same_user, listen_tcp, listen_unix, tune


class Door:
    """The listening sockets of one process; for one event loop."""

    def __init__(self, name: str, node_id: str, tcp_host: str, tcp_ports: range = range(0)) -> None:
        """`name` begins that of the socket; `tcp_host` is this node's own address; an empty
        `tcp_ports` allows any port."""
        self.secret = secrets.token_bytes(SECRET_BYTES)
        self._node_id = node_id
        self._unix_name = f"{name}-{secrets.token_hex(16)}"
        self._tcp_host = tcp_host
        self._tcp_ports = tcp_ports
        self._tcp_port = 0
        self._servers: list[asyncio.Server] = []
        self._opening_tcp = asyncio.Lock()
        self._make_channel: Callable[[], asyncio.Protocol] | None = None

    @property
    def address(self) -> ChannelAddress:
        """What a control call carries now."""
        host = self._tcp_host if self._tcp_port else None
        return ChannelAddress(self._node_id, self._unix_name, self.secret, host, self._tcp_port)

    async def open(self, make_channel: Callable[[], asyncio.Protocol]) -> None:
        """Listen on the Unix socket; `make_channel` is called for each who connects."""
        self._make_channel = make_channel
        loop = asyncio.get_running_loop()
        listener = listen_unix(self._unix_name)
        self._servers.append(await loop.create_unix_server(make_channel, sock=listener))

    async def open_tcp(self) -> None:
        """Listen on TCP too, if not done before. Raises OSError when no port is free."""
        assert self._make_channel is not None, "the door is not open"
        async with self._opening_tcp:
            if self._tcp_port:
                return
            sock = listen_tcp(self._tcp_host, self._tcp_ports)
            loop = asyncio.get_running_loop()
            self._servers.append(await loop.create_server(self._make_channel, sock=sock))
            self._tcp_port = sock.getsockname()[1]

    def close(self) -> None:
        """Nobody connects any more."""
        for server in self._servers:
            server.close()


def may_enter(connection: socket.socket) -> bool:
    """Prepare a connection that was accepted; False for another user's process of this node."""
    tune(connection)
    return connection.family != socket.AF_UNIX or is_same_user(connection)


async def connect(address: ChannelAddress, own_node_id: str) -> socket.socket:
    """A socket to a door, by the Unix socket of one's own node or by TCP. Raises OSError."""
    loop = asyncio.get_running_loop()
    destination: str | tuple[str, int] = "\0" + address.unix_name
    family = socket.AF_UNIX
    if address.node_id != own_node_id:
        assert address.tcp_host is not None, "a call without TCP address was not turned back"
        destination = (address.tcp_host, address.tcp_port)
        family = socket.AF_INET6 if ":" in address.tcp_host else socket.AF_INET
    connection = socket.socket(family, socket.SOCK_STREAM)
    try:
        connection.setblocking(False)
        await loop.sock_connect(connection, destination)
        if connection.family == socket.AF_UNIX and not is_same_user(connection):
            raise ConnectionRefusedError("the socket belongs to another user")
        tune(connection)
    except BaseException:
        connection.close()
        raise
    return connection
