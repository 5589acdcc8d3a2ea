"""The first frame of a channel: small, in time, and it knows the secret."""

import hmac
from typing import Protocol, TypeVar

from deployments.channels.framing import WireError

HELLO_TIMEOUT_S = 5.0


class Greeting(Protocol):
    """A protocol's hello."""

    @property
    def secret(self) -> bytes: ...

    @property
    def version(self) -> int: ...


Hello = TypeVar("Hello", bound=Greeting)


def checked_hello(message: object, kind: type[Hello], secret: bytes, version: int) -> Hello:
    """The message, if it is a hello of this `kind` that knows `secret`. Raises WireError."""
    if not isinstance(message, kind):
        raise WireError("the first frame is not a hello")
    if not hmac.compare_digest(message.secret, secret):
        raise WireError("wrong secret")
    if message.version != version:
        raise WireError(f"protocol version {message.version}; this side speaks {version}")
    return message
