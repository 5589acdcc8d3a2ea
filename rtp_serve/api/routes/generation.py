"""POST /v1/chat/completions and /v1/completions: a service behind HTTP."""

from typing import TypeVar

from starlette.requests import Request as HTTPRequest
from starlette.responses import Response

from rtp_serve.api.body import read_json
from rtp_serve.api.events import EventStream, disconnect, unless_gone
from rtp_serve.api.json_response import json_response
from rtp_serve.api.routes.access import Endpoint
from rtp_serve.api.service import Service
from rtp_serve.config.api import LimitsConfig

P = TypeVar("P")


def generation_endpoint(service: Service[P], limits: LimitsConfig) -> Endpoint:
    """Whole answers or event streams, as the body asks. A client that leaves ends the work."""

    async def generate(request: HTTPRequest, tenant: str) -> Response:
        body = await read_json(request, limits)
        prepared = await service.prepare(body, tenant)
        if body.get("stream"):
            return EventStream(service.stream(prepared), limits.client_stall_timeout_s)
        answer = service.complete(prepared)
        return json_response(await unless_gone(answer, disconnect(request.receive)))

    return generate
