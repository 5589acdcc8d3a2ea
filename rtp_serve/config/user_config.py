"""Serve's `user_config` of a deployment of engine replicas: what can change while they run."""

from typing import Any

from rtp_serve.config.engine import ModelSource
from rtp_serve.config.parse import parse_config
from rtp_serve.config.serving import ENGINE_REPLICA
from rtp_serve.errors import ConfigError


def parse_user_config(values: Any, deployment: str = ENGINE_REPLICA) -> ModelSource:
    """Which weights to run. Raises ConfigError; there is no default to fall back to by mistake."""
    where = f"user_config of {deployment}"
    if isinstance(values, dict) and "model" not in values:
        raise ConfigError(f"{where}: model: must be given")
    return parse_config(ModelSource, values, where)
