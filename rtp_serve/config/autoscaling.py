"""How many replicas of a deployment there are, and what they are to keep."""

from typing import Literal

from pydantic import Field, model_validator

from rtp_serve.config.base import Config
from rtp_serve.config.routing import SloClass, TTFTBucket

DEFAULT_TARGETS = SloClass(
    ttft=(
        TTFTBucket(max_tokens=1024, ttft_s=1.0),
        TTFTBucket(max_tokens=4096, ttft_s=2.0),
        TTFTBucket(ttft_s=6.0),
    ),
    itl_s=0.1,
)


class ForecastConfig(Config):
    """What is expected of the time that a new replica takes to start."""

    startup_s: float = Field(default=5.0, gt=0)
    """From the decision to the first request that a new replica takes."""

    level_s: float = Field(default=1.0, gt=0)
    """Time constant of the level of arrivals."""

    trend_s: float = Field(default=30.0, gt=0)
    """Time constant of their trend."""

    memory_s: float = Field(default=60.0, gt=0)
    """How long a burst is held to be likely to come again."""

    burst_quantile: float = Field(default=0.5, gt=0, le=1)
    """Of the bursts remembered, the share that there are replicas for."""


class ScalingConfig(Config):
    """Of every deployment that is planned. What Serve's `autoscaling_config` has as well means the
    same."""

    min_replicas: int = Field(default=1, ge=0)
    """The fewest; with 0 the deployment goes when nobody asks."""

    initial_replicas: int | None = Field(default=None, ge=0)
    """At the start; by default `min_replicas`."""

    max_replicas: int = Field(default=4, ge=1)
    """The most."""

    upscale_delay_s: float = Field(default=0.0, ge=0)
    """More are wanted for so long before they start."""

    downscale_step_s: float = Field(default=1.0, ge=0)
    """From one that goes to the next."""

    metrics_interval_s: float = Field(default=0.5, gt=0)
    """From one figure of a replica to the next. Serve's own is 10 s: a burst is over by then."""

    look_back_period_s: float = Field(default=30.0, gt=0)
    """Serve's, of which "slo" takes the latest figures; longer than `metrics_interval_s`."""

    @model_validator(mode="after")
    def _check_numbers(self) -> "ScalingConfig":
        first = self.min_replicas if self.initial_replicas is None else self.initial_replicas
        if not self.min_replicas <= first <= self.max_replicas:
            raise ValueError(
                "min_replicas, initial_replicas and max_replicas must rise, got "
                f"{self.min_replicas}, {first} and {self.max_replicas}"
            )
        if self.look_back_period_s <= self.metrics_interval_s:
            raise ValueError(
                "look_back_period_s must be longer than metrics_interval_s, got "
                f"{self.look_back_period_s} and {self.metrics_interval_s}"
            )
        return self


class AutoscalingConfig(ScalingConfig):
    """Of engine replicas: targets in place of Serve's ongoing requests."""

    policy: Literal["slo", "ongoing-requests"] = "slo"
    """Keep the targets below, or Serve's own rule with `target_ongoing_requests`."""

    downscale_delay_s: float | None = Field(default=None, ge=0)
    """Fewer are enough for so long before one goes; by default twice `forecast.startup_s`, what it
    takes to have one back."""

    downscale_to_zero_delay_s: float = Field(default=300.0, ge=0)
    """Nobody asks for so long before the last one goes."""

    target_ongoing_requests: float | None = Field(default=None, gt=0)
    """Serve's target for a replica; only with `policy: ongoing-requests`."""

    warm_processes: int = Field(default=0, ge=0)
    """Processes on each node that wait, with all imports done, to become replicas; each takes about
    200 MB and no CPU time. With `policy: slo`."""

    targets: SloClass = DEFAULT_TARGETS
    """Time to the first token by prompt length, and between tokens."""

    attainment: float = Field(default=0.95, gt=0, lt=1)
    """The share of requests that shall keep them."""

    kv_headroom: float = Field(default=0.1, ge=0, lt=1)
    """Of a replica's KV cache, the share that is kept free."""

    tokens_per_s: float = Field(default=4096.0, gt=0)
    """Prefill rate of a replica of which nothing is known."""

    forecast: ForecastConfig = ForecastConfig()
    """Arrivals to come."""

    @property
    def hold_s(self) -> float:
        """`downscale_delay_s`, or its default."""
        if self.downscale_delay_s is None:
            return 2 * self.forecast.startup_s
        return self.downscale_delay_s

    @model_validator(mode="after")
    def _check(self) -> "AutoscalingConfig":
        if (self.target_ongoing_requests is not None) != (self.policy == "ongoing-requests"):
            raise ValueError(
                "target_ongoing_requests: belongs to policy 'ongoing-requests', which needs it, "
                f"got {self.target_ongoing_requests!r} with policy {self.policy!r}"
            )
        return self


class IngressAutoscalingConfig(ScalingConfig):
    """Of ingresses."""

    min_replicas: int = Field(default=1, ge=1)
    """The fewest."""

    downscale_delay_s: float = Field(default=60.0, ge=0)
    """Fewer are enough for so long before one goes."""

    look_back_period_s: float = Field(default=5.0, gt=0)
    """CPU time is averaged over it; longer than `metrics_interval_s`."""

    target_utilization: float = Field(default=0.5, gt=0, le=1)
    """Of the one core that an ingress can use, the share that it uses on average."""
