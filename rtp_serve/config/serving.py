"""One application on Ray Serve: the `args:` of a YAML file for `serve run`."""

from typing import Annotated

from pydantic import Field, model_validator

from rtp_serve.config.api import ApiConfig
from rtp_serve.config.autoscaling import AutoscalingConfig, IngressAutoscalingConfig
from rtp_serve.config.base import Config
from rtp_serve.config.engine import EngineConfig
from rtp_serve.config.routing import AppRoutingConfig, RoutingConfig

ENGINE_REPLICA = "EngineReplica"
"""Name of the deployment of engine replicas."""

INGRESS = "Ingress"
"""Name of the deployment of HTTP front ends."""

Port = Annotated[int, Field(ge=1, le=65535)]

# Slots above what the engine takes in, so that it is the engine that refuses, with a 429.
_SPARE_REQUESTS = 64


class ReplicaConfig(Config):
    """The engine replicas."""

    num_replicas: int = Field(default=1, ge=1)
    """How many engines; a fixed number."""

    autoscaling: AutoscalingConfig | None = None
    """As many as targets ask for instead of a fixed number; see docs/autoscaling.md."""

    num_cpus: float = Field(default=0.5, ge=0)
    """CPUs Ray reserves for a rank, of which a replica has one unless `engine.parallel` says more.
    Only placement: threads are `engine.num_threads`."""

    num_gpus: float = Field(default=0, ge=0)
    """GPUs Ray reserves for a rank."""

    resources: dict[str, float] = Field(default_factory=dict)
    """Custom Ray resources of a rank, to pin it to nodes that have them."""

    label_selector: dict[str, str] = Field(default_factory=dict)
    """Ray node labels that every rank's node must have, as `{pool: decode}`."""

    health_check_period_s: float = Field(default=2.0, gt=0)
    """Time between health checks; a dead replica is replaced after one."""

    health_check_timeout_s: float = Field(default=30.0, gt=0)
    """A replica silent for so long is replaced."""

    drain_timeout_s: float = Field(default=600.0, ge=0)
    """A replica that is asked to stop hands its streams to others; those that no other one takes
    may go on there for so long."""

    @property
    def can_be_several(self) -> bool:
        """Whether there may be more than one at a time."""
        if self.autoscaling is None:
            return self.num_replicas > 1
        return self.autoscaling.max_replicas > 1

    @property
    def keeps_targets(self) -> bool:
        """Whether our planner says how many there are, and which role those have that can switch;
        Serve's own rule knows of no roles."""
        return self.autoscaling is not None and self.autoscaling.policy == "slo"

    @model_validator(mode="after")
    def _check(self) -> "ReplicaConfig":
        if self.autoscaling is not None and "num_replicas" in self.model_fields_set:
            raise ValueError("num_replicas and autoscaling exclude each other; set one of them")
        return self


class IngressConfig(Config):
    """The HTTP front ends."""

    num_replicas: int = Field(default=1, ge=1)
    """How many ingress processes; a fixed number."""

    autoscaling: IngressAutoscalingConfig | None = None
    """As many as their CPU time asks for instead of a fixed number; see docs/autoscaling.md."""

    num_cpus: float = Field(default=0.1, ge=0)
    """CPUs Ray reserves for an ingress."""

    resources: dict[str, float] = Field(default_factory=dict)
    """Custom Ray resources of an ingress, to pin it to nodes that have them."""

    max_ongoing_requests: int = Field(default=4096, ge=1)
    """HTTP requests one ingress handles at once."""

    listens: bool = False
    """Serve HTTP at `http_options` from the ingress itself where Serve runs no proxy."""

    replica_timeout_s: float = Field(default=30.0, gt=0)
    """A request that no engine replica takes for so long is answered 503. A stream that has lost
    its replica waits as long for another one."""

    max_resumptions: int = Field(default=3, ge=0)
    """How often a stream may lose its replica and go on at another one; 0 for never, and then it
    also stays with a replica that is asked to stop."""

    allow_public_without_keys: bool = False
    """Serve without API keys even where HTTP listens beyond the loopback interface."""

    @model_validator(mode="after")
    def _check(self) -> "IngressConfig":
        if self.autoscaling is not None and "num_replicas" in self.model_fields_set:
            raise ValueError("num_replicas and autoscaling exclude each other; set one of them")
        return self


class ChannelConfig(Config):
    """The sockets that bring tokens from replicas to ingresses, and questions to the Master."""

    tcp_ports: tuple[Port, Port] | None = None
    """Lowest and highest port for ingresses, and a Master, with replicas on other nodes; default:
    any."""

    @model_validator(mode="after")
    def _check(self) -> "ChannelConfig":
        if self.tcp_ports and self.tcp_ports[0] > self.tcp_ports[1]:
            raise ValueError(f"tcp_ports: the lower port comes first, got {list(self.tcp_ports)}")
        return self

    @property
    def tcp_port_range(self) -> range:
        """Ports to try in order; empty for any port."""
        low, high = self.tcp_ports or (0, -1)
        return range(low, high + 1)


class AppConfig(Config):
    """Everything of an application with one kind of engine replica."""

    engine: EngineConfig = EngineConfig()
    """The model and how it runs."""

    api: ApiConfig = ApiConfig()
    """Keys and limits of the HTTP API."""

    replica: ReplicaConfig = ReplicaConfig()
    """Engine replicas."""

    ingress: IngressConfig = IngressConfig()
    """HTTP front ends."""

    channel: ChannelConfig = ChannelConfig()
    """Token sockets."""

    routing: AppRoutingConfig = AppRoutingConfig()
    """Which replica a request goes to."""

    @model_validator(mode="after")
    def _check_routing(self) -> "AppConfig":
        wanted, block_size = self.routing.block_size, self.engine.cache.block_size
        if wanted != block_size and "block_size" in self.routing.model_fields_set:
            raise ValueError(
                f"routing.block_size: must be engine.cache.block_size, {block_size}, or left out; "
                f"got {wanted}"
            )
        return self

    @model_validator(mode="after")
    def _check_replication(self) -> "AppConfig":
        if self.routing.replication.enable and not self.engine.kv_store.remote.enable:
            raise ValueError(
                "routing.replication.enable needs engine.kv_store.remote.enable: copies of hot "
                "prefixes come from other nodes' tiers, and replicas of one node share theirs"
            )
        return self

    @model_validator(mode="after")
    def _check(self) -> "AppConfig":
        replica, num_ranks = self.replica, self.engine.parallel.world_size
        if num_ranks > 1 and not (replica.num_cpus or replica.num_gpus or replica.resources):
            raise ValueError(
                "replica.num_cpus, num_gpus or resources: each of the "
                f"{num_ranks} ranks of engine.parallel has a bundle, which must reserve something"
            )
        return self

    @property
    def pools(self) -> "tuple[tuple[str, AppConfig], ...]":
        """Its deployments of engine replicas: name, and the application that it would be alone."""
        return ((ENGINE_REPLICA, self),)

    @property
    def master(self) -> RoutingConfig | None:
        """What its Master is told; None if it has none."""
        wanted = self.routing.master
        is_useful = any(app.replica.can_be_several for _, app in self.pools)
        if wanted == "never" or (wanted == "auto" and not is_useful):
            return None
        return self.routing.model_copy(update={"block_size": self.engine.cache.block_size})

    @property
    def max_ongoing_requests(self) -> int:
        """Calls one engine replica holds open at once."""
        scheduler = self.engine.scheduler
        return scheduler.max_num_seqs + scheduler.max_queued + _SPARE_REQUESTS
