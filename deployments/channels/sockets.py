"""The sockets under a channel: abstract Unix ones on a node, TCP between nodes."""

import os
import socket
import struct

_UCRED = struct.Struct("3i")  # pid, uid, gid


def listen_unix(name: str) -> socket.socket:
    """A listening abstract socket: no file, gone with the process."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind("\0" + name)
    listener.listen(128)
    listener.setblocking(False)
    return listener


def listen_tcp(host: str, ports: range) -> socket.socket:
    """Listen on the first free port of `ports`, or on any when the range is empty.

    Raises OSError naming the range when none is free.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    for port in ports or (0,):
        listener = socket.socket(family, socket.SOCK_STREAM)
        try:
            listener.bind((host, port))
        except OSError:
            listener.close()
            continue
        listener.listen(128)
        listener.setblocking(False)
        return listener
    raise OSError(f"no free port on {host} in {ports.start}–{ports.stop - 1}")


def is_same_user(connection: socket.socket) -> bool:
    """Whether the process at the other end of a Unix socket runs as this one's user."""
    credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size)
    _, uid, _ = _UCRED.unpack(credentials)
    return bool(uid == os.getuid())


def tune(connection: socket.socket) -> None:
    """TCP only: send small frames at once, and notice within a minute that the peer's node died."""
    if connection.family == socket.AF_UNIX:
        return
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 20)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 10)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 50_000)
