"""What the HTTP edge is told: who may call, how much one call may ask, which origins may read."""

import re

from pydantic import Field, model_validator

from rtp_serve.config.base import Config
from rtp_serve.config.sizes import ByteSize

_SHA256 = re.compile(r"[0-9a-f]{64}")


class ApiKey(Config):
    """One key a client may present; several keys may name the same tenant."""

    name: str = Field(default="", pattern=r"^[A-Za-z0-9._-]{0,64}$")
    """The tenant: keeps its prefix cache apart from the others'."""

    sha256: str = ""
    """Hex digest of the key; `printf %s "$KEY" | sha256sum` prints it."""

    @model_validator(mode="after")
    def _check(self) -> "ApiKey":
        if not self.name:
            raise ValueError("name: an API key needs the name of its tenant")
        _check_digest("sha256", self.sha256)
        return self


class AuthConfig(Config):
    """Keys at rest are digests. Without any key every client is let in."""

    api_keys: tuple[ApiKey, ...] = ()
    """Keys for everything but /health and the playground page."""

    admin_token_sha256: str | None = None
    """Hex digest of the token for /admin routes; without one they are closed."""

    @model_validator(mode="after")
    def _check(self) -> "AuthConfig":
        if self.admin_token_sha256 is not None:
            _check_digest("admin_token_sha256", self.admin_token_sha256)
        digests = [key.sha256 for key in self.api_keys]
        if self.admin_token_sha256 in digests:
            raise ValueError("admin_token_sha256 must differ from every api_keys[].sha256")
        if len(set(digests)) != len(digests):
            raise ValueError("api_keys: two entries have the same sha256")
        return self


class LimitsConfig(Config):
    """The most that one HTTP request may ask for."""

    max_body_bytes: ByteSize = 4 << 20
    """Size of a request body, counted while it arrives."""

    max_header_bytes: ByteSize = 16 << 10
    """Size of path, query and headers together."""

    max_json_depth: int = Field(default=64, ge=4, le=500)
    """Nesting of arrays and objects in a body."""

    max_messages: int = Field(default=2048, ge=1)
    """Messages of a chat."""

    max_prompts: int = Field(default=32, ge=1)
    """Prompts in one completion request."""

    max_tools: int = Field(default=128, ge=0)
    """Tools offered in a chat."""

    max_n: int = Field(default=16, ge=1, le=16)
    """Answers to one prompt."""

    max_logprobs: int = Field(default=20, ge=0, le=20)
    """Alternatives reported for each token."""

    max_stop: int = Field(default=16, ge=0, le=16)
    """Stop strings."""

    max_stop_chars: int = Field(default=256, ge=1)
    """Characters of one stop string or bad word."""

    max_tokens: int | None = Field(default=None, ge=1)
    """Tokens of one answer; default: what the context leaves."""

    max_token_ids: int = Field(default=262_144, ge=1)
    """Length of a list of token ids to detokenize."""

    request_timeout_s: float = Field(default=600.0, gt=0)
    """A request that is not answered by then is aborted."""

    client_stall_timeout_s: float = Field(default=60.0, gt=0)
    """A client that takes nothing for so long while we stream is dropped."""


class KeptStreamsConfig(Config):
    """Streams with `stream_options: {resumable: true}`, which outlive their connection."""

    max_streams: int = Field(default=256, ge=0)
    """How many an ingress keeps, running and over; 0: none can be resumed."""

    max_bytes: ByteSize = 1 << 20
    """Events kept of each; the oldest go first."""

    grace_s: float = Field(default=30.0, gt=0)
    """One that nobody reads for so long is aborted."""

    keep_s: float = Field(default=60.0, ge=0)
    """After its end it can be read for so long."""


class ApiConfig(Config):
    """The OpenAI-compatible HTTP server."""

    auth: AuthConfig = AuthConfig()
    """Keys and the admin token."""

    limits: LimitsConfig = LimitsConfig()
    """Hard caps on each request."""

    streams: KeptStreamsConfig = KeptStreamsConfig()
    """Streams that clients may resume."""

    cors_origins: tuple[str, ...] = ()
    """Origins whose pages may call the API from a browser; none by default."""


def _check_digest(field: str, value: str) -> None:
    if not _SHA256.fullmatch(value):
        raise ValueError(f"{field} must be the 64 lower-case hex digits of a SHA-256 digest")
