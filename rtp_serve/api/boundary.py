"""The outermost ASGI layer: request id, header cap, deadline, figures, and every error's answer.

Knows no endpoint. An error raised before the answer started becomes a JSON answer; after that, the
last events of the stream.
"""

import asyncio
import logging
import re
from collections.abc import Callable
from http import HTTPStatus

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from rtp_serve.api.errors import ClientDisconnected, error_body, error_response, error_status
from rtp_serve.api.events import DONE, event
from rtp_serve.api.metrics import HttpMetrics
from rtp_serve.clock import Clock
from rtp_serve.config.api import LimitsConfig
from rtp_serve.errors import EngineDead, HeadersTooLarge, RequestTimeout, RtpServeError

logger = logging.getLogger(__name__)

CLIENT_LEFT = 499
"""The status under which a client that left is counted; nothing is sent."""

_REQUEST_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")


class Boundary:
    """Wraps the whole application."""

    def __init__(
        self,
        app: ASGIApp,
        limits: LimitsConfig,
        metrics: HttpMetrics,
        clock: Clock,
        draw_id: Callable[[], str],
        routes: frozenset[str],
    ) -> None:
        """`routes` are the paths that figures are kept for; any other is counted as "other"."""
        self._app = app
        self._limits = limits
        self._metrics = metrics
        self._clock = clock
        self._draw_id = draw_id
        self._routes = routes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        asked_for = Headers(scope=scope).get("x-request-id", "")
        request_id = asked_for if _REQUEST_ID.fullmatch(asked_for) else f"req-{self._draw_id()}"
        scope.setdefault("state", {})["request_id"] = request_id
        answer = _Answer(send, request_id)
        start_s = self._clock.monotonic()
        self._metrics.start()
        try:
            await self._run(scope, receive, answer)
        except asyncio.CancelledError:
            answer.status = CLIENT_LEFT
            raise
        finally:
            path = scope["path"].removeprefix(scope.get("root_path", ""))
            route = path if path in self._routes else "other"
            self._metrics.finish(route, answer.status, self._clock.monotonic() - start_s)

    async def _run(self, scope: Scope, receive: Receive, answer: "_Answer") -> None:
        try:
            self._check_headers(scope)
            await self._run_in_time(scope, receive, answer.send)
        except ClientDisconnected:
            answer.status = CLIENT_LEFT
        except RtpServeError as error:
            if isinstance(error, EngineDead):
                logger.warning("request %s: %s", answer.request_id, error)
            elif error.status >= 500:
                logger.error("request %s: %s", answer.request_id, error, exc_info=error)
            await answer.fail(error, scope, receive)
        except Exception as error:  # the top of a request: nothing is above to answer it
            logger.exception("request %s failed", answer.request_id)
            await answer.fail(error, scope, receive)

    async def _run_in_time(self, scope: Scope, receive: Receive, send: Send) -> None:
        limit_s = self._limits.request_timeout_s
        try:
            async with asyncio.timeout(limit_s) as deadline:
                await self._app(scope, receive, send)
        except TimeoutError as error:
            if not deadline.expired():
                raise
            message = f"the request took longer than {limit_s:g} s and was aborted"
            raise RequestTimeout(message) from error

    def _check_headers(self, scope: Scope) -> None:
        size = len(scope.get("raw_path") or b"") + len(scope["query_string"])
        size += sum(len(name) + len(value) for name, value in scope["headers"])
        if size > self._limits.max_header_bytes:
            limit = self._limits.max_header_bytes
            raise HeadersTooLarge(f"path and headers have {size} bytes; at most {limit} are read")


class _Answer:
    """What was sent of one answer so far."""

    def __init__(self, send: Send, request_id: str) -> None:
        self._send = send
        self.request_id = request_id
        self.status = int(HTTPStatus.OK)
        self._has_started = False
        self._is_event_stream = False
        self._is_complete = False

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self._has_started = True
            self.status = message["status"]
            headers = MutableHeaders(scope=message)
            headers["x-request-id"] = self.request_id
            headers.setdefault("x-content-type-options", "nosniff")
            self._is_event_stream = headers.get("content-type", "").startswith("text/event-stream")
        elif message["type"] == "http.response.body":
            self._is_complete = not message.get("more_body", False)
        await self._send(message)

    async def fail(self, error: Exception, scope: Scope, receive: Receive) -> None:
        """Tell the client, in whichever way is still open."""
        if not self._has_started:
            await error_response(error)(scope, receive, self.send)
        elif self._is_event_stream and not self._is_complete:
            self.status = error_status(error)
            body = event(error_body(error)) + DONE
            await self._send({"type": "http.response.body", "body": body, "more_body": False})
