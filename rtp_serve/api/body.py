"""A request body: read under a size cap, then parsed under a depth cap. Knows no endpoint."""

from asyncio import to_thread
from collections.abc import Iterable
from typing import Any

import msgspec
from starlette.requests import ClientDisconnect
from starlette.requests import Request as HTTPRequest

from rtp_serve.api.errors import ClientDisconnected
from rtp_serve.config.api import LimitsConfig
from rtp_serve.errors import InvalidRequest, PayloadTooLarge, UnsupportedMediaType

_INLINE_BYTES = 64 << 10
"""Larger bodies are parsed off the event loop."""


async def read_json(request: HTTPRequest, limits: LimitsConfig) -> dict[str, Any]:
    """The JSON object a client sent.

    Raises UnsupportedMediaType, PayloadTooLarge, InvalidRequest, or ClientDisconnected. The media
    type is insisted on because a foreign page can make a browser send any other without asking.
    """
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type != "application/json":
        raise UnsupportedMediaType(
            f"content-type must be application/json, got {media_type or 'none'!r}"
        )
    data = await _read(request, limits.max_body_bytes)
    if len(data) <= _INLINE_BYTES:
        return parse_object(data, limits.max_json_depth)
    return await to_thread(parse_object, data, limits.max_json_depth)


async def _read(request: HTTPRequest, max_bytes: int) -> bytes:
    declared = request.headers.get("content-length", "")
    if declared.isdecimal() and int(declared) > max_bytes:
        raise PayloadTooLarge(f"the body has {declared} bytes; at most {max_bytes} are accepted")
    data = bytearray()
    try:
        async for chunk in request.stream():
            data += chunk
            if len(data) > max_bytes:
                raise PayloadTooLarge(f"the body has more than {max_bytes} bytes")
    except ClientDisconnect as error:
        raise ClientDisconnected from error
    return bytes(data)


def parse_object(data: bytes, max_depth: int) -> dict[str, Any]:
    """JSON text → dict. Raises InvalidRequest for anything else or for too deep a nesting."""
    try:
        value = msgspec.json.decode(data)
    except RecursionError as error:
        raise _too_deep(max_depth) from error
    except ValueError as error:  # malformed, bad UTF-8, a number out of range
        raise InvalidRequest(f"the body is not valid JSON: {error}") from error
    if not isinstance(value, dict):
        raise InvalidRequest(f"the body must be a JSON object, got {_json_type(value)}")
    if data.count(b"[") + data.count(b"{") > max_depth:
        _check_depth(value, max_depth)
    return value


def _check_depth(value: object, max_depth: int) -> None:
    level: list[object] = [value]
    for _ in range(max_depth):
        level = [child for parent in level for child in _containers(parent)]
        if not level:
            return
    raise _too_deep(max_depth)


def _containers(value: object) -> Iterable[object]:
    children = value.values() if isinstance(value, dict) else value
    assert isinstance(children, Iterable)
    return (child for child in children if isinstance(child, dict | list))


def _too_deep(max_depth: int) -> InvalidRequest:
    return InvalidRequest(f"the body nests arrays and objects deeper than {max_depth} levels")


def _json_type(value: object) -> str:
    names = {list: "an array", str: "a string", bool: "a boolean", type(None): "null"}
    return names.get(type(value), "a number")
