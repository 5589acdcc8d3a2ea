"""The streams that clients may resume, by tenant and request id. Bounded in number and time."""

import asyncio
from collections.abc import AsyncGenerator, Mapping
from typing import Any

from rtp_serve.api.kept_stream import KeptStream
from rtp_serve.config.api import KeptStreamsConfig
from rtp_serve.errors import Overloaded, StreamExists, StreamNotFound, UnsupportedParameter

_Key = tuple[str, str]
"""(tenant, request id): a tenant never meets another one's."""


class KeptStreams:
    """Of one process: another ingress knows nothing of them."""

    def __init__(self, config: KeptStreamsConfig, timeout_s: float) -> None:
        """`timeout_s` is the longest that a stream may take."""
        self._config = config
        self._timeout_s = timeout_s
        self._streams: dict[_Key, KeptStream] = {}

    def __len__(self) -> int:
        return len(self._streams)

    def check(self, tenant: str, stream_id: str) -> None:
        """Raises UnsupportedParameter, StreamExists or Overloaded if none could be started now."""
        if not self._config.max_streams:
            raise UnsupportedParameter(
                "no streams can be resumed here: api.streams.max_streams is 0",
                "stream_options.resumable",
            )
        if (tenant, stream_id) in self._streams:
            raise StreamExists(
                f"there is a stream of x-request-id {stream_id!r}: GET /v1/streams/{stream_id} "
                "resumes it, DELETE ends it"
            )
        if len(self._streams) >= self._config.max_streams and self._oldest_over() is None:
            raise Overloaded(
                f"{len(self._streams)} resumable streams are open; try again later or without "
                "stream_options.resumable"
            )

    def start(
        self, tenant: str, stream_id: str, chunks: AsyncGenerator[Mapping[str, Any], None]
    ) -> KeptStream:
        """Run `chunks` to their end, whoever reads. Raises what `check` does."""
        self.check(tenant, stream_id)
        if len(self._streams) >= self._config.max_streams:
            oldest = self._oldest_over()
            assert oldest is not None, "check() has let one too many in"
            del self._streams[oldest]
        key = (tenant, stream_id)
        stream = KeptStream(
            chunks, self._config, self._timeout_s, lambda stream: self._over(key, stream)
        )
        self._streams[key] = stream
        return stream

    def find(self, tenant: str, stream_id: str) -> KeptStream:
        """Raises StreamNotFound, also for another tenant's."""
        stream = self._streams.get((tenant, stream_id))
        if stream is None:
            raise StreamNotFound(f"no stream {stream_id[:200]!r} is kept here")
        return stream

    def end(self, tenant: str, stream_id: str) -> None:
        """End it if need be, and forget it. Raises StreamNotFound."""
        self.find(tenant, stream_id).end()
        del self._streams[tenant, stream_id]

    def _oldest_over(self) -> _Key | None:
        return next((key for key, stream in self._streams.items() if stream.is_over), None)

    def _over(self, key: _Key, stream: KeptStream) -> None:
        """Keep what can be of use: not what was given up or has nothing to tell."""
        if stream.was_ended or stream.is_empty:
            self._forget(key, stream)
        else:
            loop = asyncio.get_running_loop()
            loop.call_later(self._config.keep_s, self._forget, key, stream)

    def _forget(self, key: _Key, stream: KeptStream) -> None:
        if self._streams.get(key) is stream:
            del self._streams[key]
