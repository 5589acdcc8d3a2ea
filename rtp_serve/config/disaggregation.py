"""An application whose prompts are computed by other replicas than its answers."""

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field, ValidationError, field_validator, model_validator

from rtp_serve.config.base import Config
from rtp_serve.config.engine import EngineConfig
from rtp_serve.config.parse import explain
from rtp_serve.config.serving import AppConfig, ReplicaConfig

DECODE_REPLICA = "DecodeReplica"
PREFILL_REPLICA = "PrefillReplica"
"""Names of the deployments."""

_SAME_TO_SWITCH = ("parallel", "max_model_len", "cache", "kv_store")
"""Of the engines of both kinds of replicas, where one may become the other: arithmetic, what
requests they take, and how blocks are held."""


class PrefillConfig(Config):
    """The replicas that compute prompts."""

    replica: ReplicaConfig = ReplicaConfig()
    """How many, and where."""

    engine: dict[str, Any] = Field(default_factory=dict)
    """What differs from the `engine` of the decode replicas, as `{scheduler:
    {max_num_batched_tokens: 2048}, parallel: {tp: 2}}`. The model is the same."""

    @field_validator("engine")
    @classmethod
    def _check(cls, engine: dict[str, Any]) -> dict[str, Any]:
        for key in ("model", "revision", "served_model_name", "dtype"):
            if key in engine:
                raise ValueError(f"{key} is that of the decode replicas and cannot be set here")
        return engine


class TransferConfig(Config):
    """How prompts' keys and values come from prefill to decode replicas."""

    choice: Literal["predicted", "always"] = "predicted"
    """Which prompts prefill replicas compute: those for which that is predicted to be faster, or
    all that can be."""

    lease_s: float = Field(default=3.0, gt=0, le=60)
    """A side that says nothing for so long is taken for lost."""

    max_attempts: int = Field(default=2, ge=1, le=8)
    """Prefill replicas that are asked for one prompt before the decode replica computes it."""

    timeout_s: float = Field(default=300.0, gt=0)
    """A prompt that has not come by then is computed by the decode replica, beside what runs there.
    Lost replicas are noticed long before, by the lease."""

    layer_groups: int = Field(default=16, ge=1, le=64)
    """In so many groups of layers a step's keys and values are told and copied, at most; the last
    group's copy is what the answer waits for. 1 copies all when the step has ended."""

    shares_memory: bool = True
    """Let decode replicas of a prefill replica's node read its memory. Else, and between nodes, the
    bytes go through Ray's object store."""


class DisaggregatedConfig(AppConfig):
    """Everything of an application with prefill and decode replicas. `engine` and `replica` are of
    the decode replicas, and of the prefill replicas where `prefill` says nothing else."""

    prefill: PrefillConfig = PrefillConfig()
    """Replicas that compute prompts."""

    transfer: TransferConfig = TransferConfig()
    """The way from them to the decode replicas."""

    switching: bool = False
    """Whether replicas may change between both roles while they run, for autoscaling or by
    `user_config`. Decode replicas then keep their blocks in memory that others can read, as prefill
    replicas do."""

    @model_validator(mode="after")
    def _check_prefill(self) -> "DisaggregatedConfig":
        if not self.engine.cache.enable_prefix_caching:
            raise ValueError(
                "engine.cache.enable_prefix_caching: must be true, for what prefill replicas "
                "compute is found there"
            )
        try:
            prefill = self._prefill_engine()
        except ValidationError as error:
            raise ValueError(f"prefill.engine: {explain(error)}") from error
        if self.routing.replication.enable and not prefill.kv_store.remote.enable:
            raise ValueError(
                "routing.replication.enable needs prefill.engine.kv_store.remote.enable: copies of "
                "hot prefixes come from other nodes' tiers"
            )
        if self.switching:
            self._check_switching(prefill)
        return self

    def _check_switching(self, prefill: EngineConfig) -> None:
        """A replica that switches keeps its engine, so it must be fit for both kinds of work."""
        for name in _SAME_TO_SWITCH:
            ours, theirs = getattr(self.engine, name), getattr(prefill, name)
            if ours != theirs:
                raise ValueError(
                    f"switching: engine.{name} and prefill.engine.{name} must be equal, got "
                    f"{_shown(ours)} and {_shown(theirs)}"
                )

    @property
    def decode_app(self) -> AppConfig:
        """The decode replicas' part. Ranks must see each other's memory, whoever else may."""
        is_shared = self.engine.parallel.world_size > 1 or (
            self.switching and self.transfer.shares_memory
        )
        return self._app(_with_shared_cache(self.engine, is_shared), self.replica)

    @property
    def prefill_app(self) -> AppConfig:
        """The prefill replicas' part."""
        engine = self._prefill_engine()
        is_shared = self.transfer.shares_memory or engine.parallel.world_size > 1
        return self._app(_with_shared_cache(engine, is_shared), self.prefill.replica)

    def _prefill_engine(self) -> EngineConfig:
        """The settings of both together. Raises ValidationError."""
        return EngineConfig.model_validate(
            _merged(self.engine.model_dump(exclude_unset=True), self.prefill.engine)
        )

    @property
    def pools(self) -> tuple[tuple[str, AppConfig], ...]:
        return ((DECODE_REPLICA, self.decode_app), (PREFILL_REPLICA, self.prefill_app))

    def _app(self, engine: EngineConfig, replica: ReplicaConfig) -> AppConfig:
        return AppConfig(
            engine=engine,
            api=self.api,
            replica=replica,
            ingress=self.ingress,
            channel=self.channel,
        )


def _shown(value: Any) -> Any:
    """As it is written in YAML, as far as it was."""
    return value.model_dump(exclude_unset=True) if isinstance(value, Config) else value


def _with_shared_cache(engine: EngineConfig, is_shared: bool) -> EngineConfig:
    cache = engine.cache.model_copy(update={"is_shared": is_shared})
    return engine.model_copy(update={"cache": cache})


def _merged(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """`base` with `changes`, mapping by mapping."""
    result = dict(base)
    for key, value in changes.items():
        before = result.get(key)
        if isinstance(before, Mapping) and isinstance(value, Mapping):
            result[key] = _merged(before, value)
        else:
            result[key] = value
    return result
