"""Messages over sockets: reports everywhere, and orders where ranks are on several nodes.

The library's connections carry bytes, each end proves that it knows the key, and a process that is
killed closes its end.
"""

import os
import queue
import socket
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from multiprocessing import AuthenticationError
from multiprocessing.connection import Client, Connection, Listener

from rtp_serve.errors import RankLost

Address = tuple[str, int]
"""Host and port."""

_LOOK_S = 0.2
"""How often one that waits for connections looks whether they still can come."""


class ConnectionSender:
    """To everybody at the other ends."""

    def __init__(self, connections: Sequence[Connection]) -> None:
        self._connections = connections

    def send(self, data: bytes) -> None:
        """Raises RankLost if one of them has ended."""
        try:
            for connection in self._connections:
                connection.send_bytes(data)
        except OSError as error:
            raise RankLost(f"a rank has ended: {error}") from error

    def close(self) -> None:
        for connection in self._connections:
            connection.close()


class ConnectionReceiver:
    """From one other end."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def receive(self) -> bytes:
        """Raises RankLost once no more will come."""
        try:
            return self._connection.recv_bytes()
        except (EOFError, OSError) as error:
            raise RankLost("a rank has ended") from error

    def close(self) -> None:
        self._connection.close()


class Switchboard:
    """Where followers call the leader, once each."""

    def __init__(self, host: str, key: bytes, num_followers: int) -> None:
        """Listens at a port of the host's from now on."""
        self._listener = Listener((host, 0), backlog=num_followers, authkey=key)
        self._num_followers = num_followers
        self._arrived: queue.SimpleQueue[tuple[int, Connection]] = queue.SimpleQueue()
        self._is_closed = False
        self._thread = threading.Thread(target=self._accept, name="rank-connections", daemon=True)
        self._thread.start()

    @property
    def address(self) -> Address:
        host, port = self._listener.address
        return str(host), int(port)

    def connections(self, check: Callable[[], None]) -> list[Connection]:
        """Of ranks 1 and after, when all have called. `check` raises if they will not."""
        by_rank: dict[int, Connection] = {}
        while len(by_rank) < self._num_followers:
            try:
                rank, connection = self._arrived.get(timeout=_LOOK_S)
            except queue.Empty:
                check()
            else:
                by_rank[rank] = connection
        return [by_rank[rank] for rank in sorted(by_rank)]

    def close(self) -> None:
        """End listening. What has connected stays so."""
        if self._is_closed:
            return
        self._is_closed = True
        with suppress(OSError):  # an end of the thread's waiting, if it still waits
            socket.create_connection(self.address, _LOOK_S).close()
        self._thread.join()
        self._listener.close()

    def _accept(self) -> None:
        """Who does not know the key, or hangs up, is nobody."""
        num_arrived = 0
        while num_arrived < self._num_followers and not self._is_closed:
            with suppress(AuthenticationError, EOFError, OSError):
                connection = self._listener.accept()
                rank = int.from_bytes(connection.recv_bytes(1))
                if 0 < rank <= self._num_followers:
                    self._arrived.put((rank, connection))
                    num_arrived += 1


def call(address: Address, key: bytes, rank: int) -> Connection:
    """A follower's connection to the leader. Raises RankLost if the leader is not there."""
    try:
        connection = Client(address, authkey=key)
        connection.send_bytes(bytes([rank]))
    except (OSError, EOFError, AuthenticationError) as error:
        raise RankLost(f"the leader does not answer at {address}: {error}") from error
    return connection


def own_host(connection: Connection) -> str:
    """This end's address, by which the other end's node reaches this one."""
    with socket.socket(fileno=os.dup(connection.fileno())) as end:
        return str(end.getsockname()[0])
