"""/v1/streams/{id}: streams that go on without their client, by the request id of their POST."""

import re

from starlette.requests import Request as HTTPRequest
from starlette.responses import Response

from rtp_serve.api.events import EventStream
from rtp_serve.api.kept_streams import KeptStreams
from rtp_serve.errors import InvalidRequest

_EVENT_NUMBER = re.compile(r"[0-9]{1,18}")


class StreamRoutes:
    """Resume and end; only the tenant that began a stream finds it."""

    def __init__(self, streams: KeptStreams, stall_timeout_s: float) -> None:
        self._streams = streams
        self._stall_timeout_s = stall_timeout_s

    async def resume(self, request: HTTPRequest, tenant: str) -> Response:
        """The events after `last-event-id`, or all, and those to come. Raises StreamNotFound,
        InvalidRequest, and StreamEventsGone, a 410."""
        stream = self._streams.find(tenant, request.path_params["id"])
        after = _event_number(request.headers.get("last-event-id", "0"))
        return EventStream(stream.read(after), self._stall_timeout_s)

    async def end(self, request: HTTPRequest, tenant: str) -> Response:
        """Abort it, and forget its events. Raises StreamNotFound."""
        self._streams.end(tenant, request.path_params["id"])
        return Response(status_code=204)


def _event_number(text: str) -> int:
    if not _EVENT_NUMBER.fullmatch(text):
        raise InvalidRequest(
            f"last-event-id must be the number of an event, got {text[:40]!r}", "last-event-id"
        )
    return int(text)
