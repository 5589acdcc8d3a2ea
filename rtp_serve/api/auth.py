"""Who may call: API keys that name tenants, and one separate token for admin routes."""

import hmac
from enum import StrEnum
from hashlib import sha256

from starlette.datastructures import Headers

from rtp_serve.config.api import AuthConfig
from rtp_serve.errors import Forbidden, Unauthorized


class Access(StrEnum):
    """What a route asks of its caller. Every route names one, so that none is open by omission."""

    OPEN = "open"
    KEY = "key"
    METRICS = "metrics"
    ADMIN = "admin"


class Gate:
    """Compares digests in constant time; no key is ever kept or logged."""

    def __init__(self, config: AuthConfig) -> None:
        self._keys = [(key.sha256.encode(), key.name) for key in config.api_keys]
        token = config.admin_token_sha256
        self._admin_token = token.encode() if token is not None else None

    def admit(self, access: Access, headers: Headers) -> str:
        """The caller's tenant ("" where there are no keys).

        Raises Unauthorized without a good key, Forbidden where the admin token is asked for and
        another key, or no token at all, is what there is.
        """
        if access is Access.OPEN:
            return ""
        digest = _bearer_digest(headers)
        is_admin = self._is_admin(digest)
        if access is Access.ADMIN:
            return self._admit_admin(digest, is_admin)
        if not self._keys or (access is Access.METRICS and is_admin):
            return ""
        return self._tenant(digest)

    def _admit_admin(self, digest: bytes | None, is_admin: bool) -> str:
        if self._admin_token is None:
            raise Forbidden("admin routes are closed: no admin token is configured")
        if digest is None:
            raise Unauthorized("send the admin token as 'Authorization: Bearer TOKEN'")
        if not is_admin:
            raise Forbidden("this is not the admin token")
        return ""

    def _is_admin(self, digest: bytes | None) -> bool:
        if self._admin_token is None or digest is None:
            return False
        return hmac.compare_digest(digest, self._admin_token)

    def _tenant(self, digest: bytes | None) -> str:
        if digest is None:
            raise Unauthorized("send your API key as 'Authorization: Bearer KEY'")
        tenant: str | None = None
        for known, name in self._keys:  # all of them, so that time does not tell which matched
            if hmac.compare_digest(digest, known):
                tenant = name
        if tenant is None:
            raise Unauthorized("the API key is not known here")
        return tenant


def _bearer_digest(headers: Headers) -> bytes | None:
    scheme, _, key = headers.get("authorization", "").partition(" ")
    if scheme.lower() != "bearer" or not key.strip():
        return None
    return sha256(key.strip().encode("latin-1")).hexdigest().encode()
