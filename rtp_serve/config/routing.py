"""How requests are shared out among replicas."""

from typing import Literal

from pydantic import Field, model_validator

from rtp_serve.config.base import Config

DEFAULT_CLASS = "default"
"""Of requests that name no SLO class."""


class TTFTBucket(Config):
    """A target for prompts up to a length."""

    max_tokens: int | None = Field(default=None, ge=1)
    """The longest prompt of the bucket; none: all that are longer than the other buckets'."""

    ttft_s: float = Field(default=2.0, gt=0)
    """Seconds to the first token."""


class SloClass(Config):
    """What requests of a class are promised. Without targets nothing is rejected."""

    ttft: tuple[TTFTBucket, ...] = ()
    """Targets by prompt length, the shortest bucket first."""

    itl_s: float | None = Field(default=None, gt=0)
    """Seconds between two tokens."""

    @model_validator(mode="after")
    def _check(self) -> "SloClass":
        lengths = [each.max_tokens or float("inf") for each in self.ttft]
        if lengths != sorted(set(lengths)):
            raise ValueError(f"ttft: max_tokens must rise from bucket to bucket, got {lengths}")
        return self


class AdmissionConfig(Config):
    """Who is refused when targets cannot be kept."""

    fair_slack: float = Field(default=2.0, ge=1)
    """A tenant within its share of the fleet is taken up to so many times its target."""

    fairness_half_life_s: float = Field(default=30.0, gt=0)
    """What a tenant had so long ago counts half."""

    weights: dict[str, float] = Field(default_factory=dict)
    """Shares of tenants, by the names of API keys; 1 where there is none."""

    @model_validator(mode="after")
    def _check(self) -> "AdmissionConfig":
        wrong = {name: weight for name, weight in self.weights.items() if weight <= 0}
        if wrong:
            raise ValueError(f"weights: must be above 0, got {wrong}")
        return self


class ReplicationConfig(Config):
    """Copies of prefixes that many requests begin with."""

    enable: bool = False
    """Bring a hot prefix to a worker of another node before requests wait for the first. It comes
    from the KV tiers of its node, so `kv_store.remote` must be on."""

    half_life_s: float = Field(default=10.0, gt=0)
    """A request so long ago counts half for how hot a prefix is."""

    cooldown_s: float = Field(default=5.0, gt=0)
    """Time between two copies of one prefix."""

    max_prefixes: int = Field(default=4096, ge=1)
    """Prefixes that are watched."""


class PredictorConfig(Config):
    """How prefill times are learned."""

    forgetting: float = Field(default=0.995, gt=0, le=1)
    """Weight of a sample after the next one has come."""

    outlier_clip: float = Field(default=4.0, gt=0)
    """A residual counts as so many typical ones at most."""

    default_tokens_per_s: float = Field(default=4096.0, gt=0)
    """Prefill rate of a worker of which nothing is known."""


class TierConfig(Config):
    """Tiers below the device, as the Master prices them."""

    host_tokens_per_s: float = Field(default=200_000.0, gt=0)
    """Restore rate from a node's memory."""

    disk_tokens_per_s: float = Field(default=40_000.0, gt=0)
    """Restore rate from its disk."""


class RoutingConfig(Config):
    """The Master: policy, limits and what it believes of workers."""

    policy: Literal[
        "priced",
        "shortest-ttft",
        "weighted-score",
        "prefix-affinity",
        "power-of-two",
        "round-robin",
    ] = "priced"
    """How a worker is chosen; see docs/routing.md."""

    knobs: dict[str, float] = Field(default_factory=dict)
    """The policy's own, by name."""

    block_size: int = Field(default=16, ge=1)
    """Tokens of a block, as the engines have it."""

    max_workers: int = Field(default=1024, ge=1)
    """Replicas that can be there at once."""

    reserve_new_tokens: int = Field(default=1000, ge=0)
    """Tokens to come for which room is kept, if a request may have so many."""

    worker_silence_s: float = Field(default=10.0, gt=0)
    """A worker that reports nothing for so long gets nothing."""

    transit_timeout_s: float = Field(default=5.0, gt=0)
    """A request that its worker does not report for so long is lost."""

    in_flight_timeout_s: float = Field(default=300.0, gt=0)
    """A request of which nothing is heard for so long is given up."""

    slo_classes: dict[str, SloClass] = Field(default_factory=lambda: {DEFAULT_CLASS: SloClass()})
    """By name. Clients name one in `slo_class`; requests that name none are of "default"."""

    admission: AdmissionConfig = AdmissionConfig()
    """Early rejection."""

    replication: ReplicationConfig = ReplicationConfig()
    """Hot prefixes."""

    predictor: PredictorConfig = PredictorConfig()
    """Prefill times."""

    tiers: TierConfig = TierConfig()
    """Restore rates."""

    @model_validator(mode="after")
    def _check(self) -> "RoutingConfig":
        if DEFAULT_CLASS not in self.slo_classes:
            raise ValueError(
                f"slo_classes: needs {DEFAULT_CLASS!r}, got {sorted(self.slo_classes)}"
            )
        if self.transit_timeout_s > self.in_flight_timeout_s:
            raise ValueError(
                f"transit_timeout_s ({self.transit_timeout_s:g}) must not exceed "
                f"in_flight_timeout_s ({self.in_flight_timeout_s:g})"
            )
        return self


class AppRoutingConfig(RoutingConfig):
    """The Master of an application."""

    master: Literal["auto", "always", "never"] = "auto"
    """Whether there is one: "auto" where a deployment can have more than one replica. Without, Ray
    Serve's router chooses replicas."""
