"""Where HTTP is served. Without API keys, that must be the loopback interface only."""

import ray
from ray.serve.config import HTTPOptions, ProxyLocation
from ray.serve.context import _get_global_client

from rtp_serve.config.exposure import require_keys_beyond_loopback
from rtp_serve.config.serving import AppConfig


def exposed_options(config: AppConfig) -> HTTPOptions | None:
    """Where an ingress has to listen itself; None where Serve's proxies do, or nobody.

    Called in a replica, as it starts; blocks for a moment. Raises ConfigError if HTTP is served
    beyond loopback and nobody would have to show a key.
    """
    # Serve has no public way to ask where its proxies listen.
    client = _get_global_client()
    has_proxies = ray.get(client._controller.get_proxy_location.remote()) != ProxyLocation.Disabled
    listens = config.ingress.listens and not has_proxies
    options = client.http_config
    require_keys_beyond_loopback(config, options.host if has_proxies or listens else None)
    return options if listens else None
