"""What the OpenAI endpoints have in common below HTTP: a dictionary in, dictionaries out.

Preparing checks, renders and tokenizes; every mistake of the caller shows there, before anything is
generated. Python callers use `answer` and `answer_stream` on the same services as the routes.
"""

from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from typing import Any, Protocol, TypeVar

from rtp_serve.errors import UnsupportedParameter

P = TypeVar("P")


class Service(Protocol[P]):
    """One endpoint. `P` is a request that is ready to run."""

    async def prepare(self, body: Mapping[str, Any], tenant: str = "") -> P:
        """Raises InvalidRequest, ModelNotFound; EngineDead when no model is there to ask."""
        ...

    async def complete(self, prepared: P) -> Mapping[str, Any]:
        """The whole answer. Raises what the engine raises; cancelling it aborts the request."""
        ...

    def stream(self, prepared: P) -> AsyncGenerator[Mapping[str, Any], None]:
        """The answer in chunks. Closing the generator aborts the request."""
        ...


def is_resumable(body: Mapping[str, Any]) -> bool:
    """Whether a body that was prepared asks for a stream that outlives its connection."""
    return bool((body.get("stream_options") or {}).get("resumable"))


async def answer(
    service: Service[P], body: Mapping[str, Any], tenant: str = ""
) -> Mapping[str, Any]:
    """A whole answer, whatever `body` says of streaming."""
    whole = {name: body[name] for name in body if name not in ("stream", "stream_options")}
    return await service.complete(await service.prepare(whole, tenant))


async def answer_stream(
    service: Service[P], body: Mapping[str, Any], tenant: str = ""
) -> AsyncGenerator[Mapping[str, Any], None]:
    """The answer in chunks, whatever `body` says of streaming. Raises UnsupportedParameter for one
    that is to be resumable, which is HTTP's."""
    prepared = await service.prepare({**body, "stream": True}, tenant)
    if is_resumable(body):
        raise UnsupportedParameter(
            "stream_options.resumable must be false or left out: streams are resumed over HTTP",
            "stream_options.resumable",
        )
    async with aclosing(service.stream(prepared)) as chunks:
        async for chunk in chunks:
            yield chunk
