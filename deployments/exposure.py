"""Without API keys, an application serves the loopback interface only."""

from ray.serve.context import _get_global_client

from rtp_serve.config.exposure import require_keys_beyond_loopback
from rtp_serve.config.serving import AppConfig


def check_exposure(config: AppConfig) -> None:
    """Raise ConfigError if Serve listens beyond loopback and nobody would have to show a key.

    Called in a replica, as it starts; blocks for a moment.
    """
    # Serve has no public way to ask where its proxies listen.
    options = _get_global_client().http_config
    require_keys_beyond_loopback(config, options.host)
