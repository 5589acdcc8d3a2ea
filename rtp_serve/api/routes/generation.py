"""POST /v1/chat/completions and /v1/completions: a service behind HTTP."""

from typing import TypeVar

from starlette.requests import Request as HTTPRequest
from starlette.responses import Response

from rtp_serve.api.body import read_json
from rtp_serve.api.events import EventStream, disconnect, events_of, unless_gone
from rtp_serve.api.json_response import json_response
from rtp_serve.api.kept_streams import KeptStreams
from rtp_serve.api.routes.access import Endpoint
from rtp_serve.api.service import Service, is_resumable
from rtp_serve.config.api import LimitsConfig

P = TypeVar("P")


def generation_endpoint(
    service: Service[P], limits: LimitsConfig, streams: KeptStreams
) -> Endpoint:
    """Whole answers or event streams, as the body asks. A client that leaves ends the work, unless
    it has asked for a stream that it can resume."""

    async def generate(request: HTTPRequest, tenant: str) -> Response:
        body = await read_json(request, limits)
        prepared = await service.prepare(body, tenant)
        if body.get("stream"):
            chunks = service.stream(prepared)
            if is_resumable(body):
                events = streams.start(tenant, request.state.request_id, chunks).read(after=0)
            else:
                events = events_of(chunks)
            return EventStream(events, limits.client_stall_timeout_s)
        answer = service.complete(prepared)
        return json_response(await unless_gone(answer, disconnect(request.receive)))

    return generate
