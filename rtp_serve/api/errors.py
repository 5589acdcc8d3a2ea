"""Errors as OpenAI's clients read them: status, headers, and `{"error": {...}}`.

An error of our own making (status 500 and above) never shows its text: the log has it.
"""

from starlette.exceptions import HTTPException
from starlette.responses import Response

from rtp_serve.api.json_response import json_response
from rtp_serve.api.responses import ErrorBody
from rtp_serve.errors import EngineDead, InvalidRequest, Overloaded, RtpServeError

ENGINE_RETRY_AFTER_S = 2
"""When to come back after a replica was lost: about what a handover takes."""

_TYPES = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}


class ClientDisconnected(Exception):
    """Nobody is listening any more: not an error of either side, and there is no answer to it."""


def error_body(error: Exception) -> ErrorBody:
    """What a client may know of an error."""
    status = error_status(error)
    if isinstance(error, EngineDead):
        message, code = "the engine is not available; try again shortly", error.code
    elif isinstance(error, RtpServeError) and status < 500:
        message, code = error.message, error.code
    else:
        message, code = "internal error; the server's log has it under the x-request-id", None
    return _body(status, message, code, error.param if isinstance(error, InvalidRequest) else None)


def error_status(error: Exception) -> int:
    return error.status if isinstance(error, RtpServeError) else 500


def error_response(error: Exception) -> Response:
    """The whole HTTP answer, with Retry-After where coming back helps."""
    headers = {}
    if isinstance(error, Overloaded):
        headers["retry-after"] = str(error.retry_after_s)
    elif isinstance(error, EngineDead):
        headers["retry-after"] = str(ENGINE_RETRY_AFTER_S)
    elif error_status(error) == 401:
        headers["www-authenticate"] = "Bearer"
    return json_response(error_body(error), error_status(error), headers)


def routing_error_response(error: HTTPException) -> Response:
    """The router's own refusals: no such path (404), wrong method (405)."""
    words = {404: "no such route", 405: "the method is not allowed here"}
    body = _body(error.status_code, words.get(error.status_code, error.detail), None, None)
    return json_response(body, error.status_code, error.headers)


def _body(status: int, message: str, code: str | None, param: str | None) -> ErrorBody:
    kind = "server_error" if status >= 500 else _TYPES.get(status, "invalid_request_error")
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}
