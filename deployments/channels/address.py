"""How a process is reached by others of its application; a control call carries it."""

from typing import Annotated

import msgspec

SECRET_BYTES = 32

Secret = Annotated[bytes, msgspec.Meta(min_length=SECRET_BYTES, max_length=SECRET_BYTES)]


class ChannelAddress(msgspec.Struct, frozen=True):
    """Where a process listens."""

    node_id: str
    """Its Ray node; a process of the same node takes the Unix socket."""

    unix_name: str
    """Name of an abstract Unix socket, without the leading zero byte."""

    secret: Secret
    """Drawn once by each process that listens; whoever says hello must know it."""

    tcp_host: str | None = None
    tcp_port: int = 0
    """Where processes of other nodes connect; no host until one of them asked for it."""
