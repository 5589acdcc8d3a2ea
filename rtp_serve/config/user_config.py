"""Serve's `user_config` of a deployment of engine replicas: what can change while they run."""

from typing import Any

from pydantic import Field

from rtp_serve.config.engine import ModelSource
from rtp_serve.config.parse import parse_config
from rtp_serve.config.serving import ENGINE_REPLICA
from rtp_serve.errors import ConfigError


class UserConfig(ModelSource):
    """Which weights to run, and who takes the other role."""

    switched: int = Field(default=0, ge=0)
    """How many of the deployment's replicas do the work of the other one: of prefill replicas,
    those that run streams, of decode replicas those that compute prompts. Needs `switching`; where
    replicas are autoscaled that sets the number."""

    @property
    def source(self) -> ModelSource:
        """The weights alone."""
        return ModelSource(model=self.model, revision=self.revision)


def parse_user_config(values: Any, deployment: str = ENGINE_REPLICA) -> UserConfig:
    """What replicas are to be. Raises ConfigError; no model is a default by mistake."""
    where = f"user_config of {deployment}"
    if isinstance(values, dict) and "model" not in values:
        raise ConfigError(f"{where}: model: must be given")
    return parse_config(UserConfig, values, where)
