"""The rule that keeps an open server off the network."""

from ipaddress import ip_address

from rtp_serve.config.serving import AppConfig
from rtp_serve.errors import ConfigError


def require_keys_beyond_loopback(config: AppConfig, host: str | None) -> None:
    """Raise ConfigError if HTTP on `host` is reachable from elsewhere and nobody needs a key.

    `host` None means no HTTP at all.
    """
    if host is None or is_loopback(host) or config.api.auth.api_keys:
        return
    if not config.ingress.allow_public_without_keys:
        raise ConfigError(
            f"http_options.host {host!r} can be reached from other machines and no API key is "
            "configured: set api.auth.api_keys, listen on 127.0.0.1, or set "
            "ingress.allow_public_without_keys: true"
        )


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches `host`; an unknown name counts as reachable."""
    if host == "localhost":
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False
