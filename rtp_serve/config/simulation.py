"""What `rtp-serve simulate` plays: modelled engines, fleets and targets."""

from pydantic import Field, model_validator

from rtp_serve.config.autoscaling import AutoscalingConfig
from rtp_serve.config.base import Config
from rtp_serve.config.routing import RoutingConfig, SloClass


class EngineModelConfig(Config):
    """One replica's engine as curves. A prefill takes `base + token · new + attention · new ·
    (context + new / 2)` seconds, a decode step `step + sequence · n + kv_token · tokens`."""

    prefill_base_s: float = Field(default=0.020, ge=0)
    """Of a prefill, whatever its length."""

    prefill_token_s: float = Field(default=1 / 9000, ge=0)
    """Of each token that is computed."""

    prefill_attention_s: float = Field(default=1e-9, ge=0)
    """Of each pair of a computed token and a token before it."""

    step_s: float = Field(default=0.010, gt=0)
    """Of a decode step, whatever is in it."""

    step_sequence_s: float = Field(default=1e-4, ge=0)
    """Of each sequence in it."""

    step_kv_token_s: float = Field(default=2e-8, ge=0)
    """Of each token of their contexts."""

    chunk_tokens: int = Field(default=2048, ge=1)
    """Tokens that a step prefills; sequences that decode get one token with each chunk."""

    cache_tokens: int = Field(default=1 << 18, ge=1)
    """Of the KV cache: for running sequences, and for prefixes as far as they leave room."""

    transfer_base_s: float = Field(default=0.002, ge=0)
    """From a prefill's end to its first token elsewhere, beside what the copy takes."""

    transfer_token_s: float = Field(default=0.0, ge=0)
    """Of each token of the prompt, as far as its copy does not overlap with the prefill."""


class FleetConfig(Config):
    """Replicas: `mixed` ones, or some that prefill and some that decode."""

    mixed: int = Field(default=0, ge=0)
    """Replicas that do both."""

    prefill: int = Field(default=0, ge=0)
    """Replicas that compute prompts."""

    decode: int = Field(default=0, ge=0)
    """Replicas that decode what those have computed."""

    @model_validator(mode="after")
    def _check(self) -> "FleetConfig":
        if bool(self.prefill) != bool(self.decode):
            raise ValueError(
                f"prefill ({self.prefill}) and decode ({self.decode}) replicas need each other"
            )
        if bool(self.mixed) == bool(self.prefill):
            raise ValueError(
                f"either mixed replicas or prefill and decode replicas, got mixed {self.mixed}, "
                f"prefill {self.prefill}, decode {self.decode}"
            )
        return self

    @property
    def num_replicas(self) -> int:
        return self.mixed + self.prefill + self.decode

    @property
    def name(self) -> str:
        return f"{self.prefill}P:{self.decode}D" if self.prefill else f"{self.mixed} mixed"


class TargetsConfig(SloClass):
    """What a fleet is large enough for. Nothing is rejected for it: that is what
    `routing.slo_classes` does."""

    attainment: float = Field(default=0.95, gt=0, le=1)
    """Share of requests that keep both."""


class SearchConfig(Config):
    """The smallest fleet that keeps the targets."""

    mixed: bool = False
    """Among fleets of mixed replicas."""

    disaggregated: bool = False
    """Among fleets of prefill and decode replicas."""

    max_replicas: int = Field(default=64, ge=1)
    """Of a role."""


class TracePart(Config):
    """What is played of a trace, and how fast."""

    first: float = Field(default=0.0, ge=0, lt=1)
    """Share of its requests that is left out at its beginning."""

    last: float = Field(default=1.0, gt=0, le=1)
    """Share of its requests that is played or left out by `first`."""

    pace: float = Field(default=1.0, gt=0)
    """Requests come so many times as fast."""

    warm_up: float = Field(default=0.1, ge=0, lt=1)
    """Share of what is played that no figure counts: it finds empty caches."""

    @model_validator(mode="after")
    def _check(self) -> "TracePart":
        if self.first >= self.last:
            raise ValueError(f"first ({self.first:g}) must be below last ({self.last:g})")
        return self


class ScaledFleetConfig(Config):
    """Fleets of mixed replicas whose number follows the load: `--autoscale` plays them."""

    scalers: dict[str, AutoscalingConfig] = Field(min_length=1)
    """Each by a name, as a topology's file has it under `autoscaling`. Without targets of its own
    one plans for those of the simulation."""

    startup_s: float = Field(default=5.0, ge=0)
    """From a replica's order to its first request, whatever a scaler expects."""

    push_period_s: float = Field(default=0.5, gt=0)
    """Between two reports of replicas to the scaler, and between two of its decisions."""


class SimulationConfig(Config):
    """A simulation. Fleets are those that are listed, every split of `sweep_replicas`, and those
    that the search looks at; with `--autoscale`, those of `autoscaled` instead."""

    engine: EngineModelConfig = EngineModelConfig()
    """Of every replica; `--fit` takes its times from measurements."""

    routing: RoutingConfig = RoutingConfig()
    """As in a topology's file; the block size is the trace's."""

    trace: TracePart = TracePart()
    """Of the file."""

    fleets: tuple[FleetConfig, ...] = ()
    """To be played as they are."""

    sweep_replicas: int | None = Field(default=None, ge=2)
    """Play every split of so many replicas into prefill and decode."""

    search: SearchConfig = SearchConfig()
    """For the smallest fleet."""

    autoscaled: ScaledFleetConfig | None = None
    """Fleets that scale."""

    targets: TargetsConfig = TargetsConfig()
    """For the search, and for goodput."""

    seed: int = 0
    """Of policies that draw lots."""

    @model_validator(mode="after")
    def _check(self) -> "SimulationConfig":
        is_searched = self.search.mixed or self.search.disaggregated
        if not (self.plays_fleets or self.autoscaled):
            raise ValueError(
                "nothing to play: give fleets, sweep_replicas, one of search.mixed and "
                "search.disaggregated, or autoscaled"
            )
        is_open = not self.targets.ttft and self.targets.itl_s is None
        if is_open and is_searched:
            raise ValueError("targets: a search needs a ttft or an itl_s to keep")
        return self

    @property
    def plays_fleets(self) -> bool:
        """Some of a size that stays."""
        search = self.search
        return bool(self.fleets or self.sweep_replicas or search.mixed or search.disaggregated)
