"""Why there are as many replicas as there are."""

from collections.abc import Awaitable, Callable, Mapping
from typing import Any, TypeAlias

from starlette.requests import Request as HTTPRequest
from starlette.responses import Response

from rtp_serve.api.json_response import json_response

ReadAutoscaling: TypeAlias = Callable[[], Awaitable[Mapping[str, Any]]]
"""The present numbers, and the latest changes with their reasons."""


class AutoscalingRoute:
    """/autoscaling."""

    def __init__(self, read: ReadAutoscaling) -> None:
        self._read = read

    async def read(self, request: HTTPRequest, tenant: str) -> Response:
        return json_response(dict(await self._read()))
