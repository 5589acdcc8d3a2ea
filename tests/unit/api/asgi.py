"""One request to an ASGI app, message by message, with a client that can leave or stop reading."""

import asyncio
import json
from typing import Any

from starlette.types import ASGIApp, Message


class RawRequest:
    """Plays the server's part of ASGI. With no body, the test sends it in parts."""

    def __init__(
        self, path: str, body: Any, headers: dict[str, str] | None = None, method: str = "POST"
    ) -> None:
        headers = {"content-type": "application/json"} | (headers or {})
        self.scope = {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "http_version": "1.1",
            "method": method,
            "scheme": "http",
            "path": path,
            "raw_path": path.encode(),
            "query_string": b"",
            "root_path": "",
            "headers": [(name.encode(), value.encode()) for name, value in headers.items()],
            "client": ("127.0.0.1", 1),
            "server": ("127.0.0.1", 80),
        }
        self._incoming: asyncio.Queue[Message] = asyncio.Queue()
        if body is not None:
            data = body if isinstance(body, bytes) else json.dumps(body).encode()
            self.receive_body(data, more_body=False)
        self.sent: list[Message] = []
        self.can_write = asyncio.Event()
        self.can_write.set()
        self.has_sent = asyncio.Event()

    def receive_body(self, data: bytes, more_body: bool) -> None:
        self._incoming.put_nowait({"type": "http.request", "body": data, "more_body": more_body})

    def leave(self) -> None:
        self._incoming.put_nowait({"type": "http.disconnect"})

    def start(self, app: ASGIApp) -> asyncio.Task[None]:
        return asyncio.create_task(app(self.scope, self._incoming.get, self._send))

    async def _send(self, message: Message) -> None:
        await self.can_write.wait()
        self.sent.append(message)
        self.has_sent.set()

    @property
    def status(self) -> int | None:
        return self.sent[0]["status"] if self.sent else None

    @property
    def text(self) -> str:
        return b"".join(message.get("body", b"") for message in self.sent).decode()
