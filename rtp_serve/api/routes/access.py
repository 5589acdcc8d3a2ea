"""A route is a path, a method, and what its caller must show: there is no way to leave that out."""

from collections.abc import Awaitable, Callable
from typing import TypeAlias

from starlette.requests import Request as HTTPRequest
from starlette.responses import Response
from starlette.routing import Route

from rtp_serve.api.auth import Access, Gate

Endpoint: TypeAlias = Callable[[HTTPRequest, str], Awaitable[Response]]
"""(request, tenant) → answer."""


class RouteTable:
    """Collects routes, each behind the gate."""

    def __init__(self, gate: Gate) -> None:
        self._gate = gate
        self.routes: list[Route] = []

    def add(self, method: str, path: str, access: Access, endpoint: Endpoint) -> None:
        """The caller is checked before the endpoint sees the request, and before its body."""

        async def guarded(request: HTTPRequest) -> Response:
            tenant = self._gate.admit(access, request.headers)
            return await endpoint(request, tenant)

        self.routes.append(Route(path, guarded, methods=[method]))

    @property
    def paths(self) -> frozenset[str]:
        return frozenset(route.path for route in self.routes)
