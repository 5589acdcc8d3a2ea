"""Configuration → Serve's deployment options."""

from typing import Any

from ray.serve.config import RequestRouterConfig

from deployments.autoscaling import autoscaling_options
from deployments.role_told import PERIOD_S as ROLE_PERIOD_S
from deployments.warm_processes import warm_environment
from rtp_serve.config.autoscaling import AutoscalingConfig
from rtp_serve.config.routing import SloClass
from rtp_serve.config.serving import AppConfig, ReplicaConfig

# How often a stopping replica looks whether its last stream has ended.
_DRAIN_POLL_S = 0.2
# A checkpoint that fails twice fails for good.
_CONSTRUCTOR_TRIES = 2
_ROUTER_CLASS = "deployments.watched_router:WatchedRouter"
ROUTER = RequestRouterConfig(request_router_class=_ROUTER_CLASS)
"""Tells callers which replicas are being withdrawn, and more."""

_ROUTER_OF_ROLES = RequestRouterConfig(
    request_router_class=_ROUTER_CLASS, request_routing_stats_period_s=ROLE_PERIOD_S
)
"""The same, which hears of roles that change."""


def replica_options(config: AppConfig, switching: bool = False) -> dict[str, Any]:
    """Options of the EngineReplica deployment. With `switching` Serve asks its replicas for their
    roles."""
    replica = config.replica
    options: dict[str, Any] = {
        # Changing it exchanges weights and restarts nothing.
        "user_config": config.engine.source.model_dump(),
        **_placement(replica, config.engine.parallel.world_size),
        "max_ongoing_requests": config.max_ongoing_requests,
        "health_check_period_s": replica.health_check_period_s,
        "health_check_timeout_s": replica.health_check_timeout_s,
        "graceful_shutdown_timeout_s": replica.drain_timeout_s,
        "graceful_shutdown_wait_loop_s": _DRAIN_POLL_S,
        "max_constructor_retry_count": _CONSTRUCTOR_TRIES,
        "request_router_config": _ROUTER_OF_ROLES if switching else ROUTER,
    }
    if replica.autoscaling is None:
        options["num_replicas"] = replica.num_replicas
    else:
        options["autoscaling_config"] = autoscaling_options(replica.autoscaling, switching)
    return options


def _placement(replica: ReplicaConfig, num_ranks: int) -> dict[str, Any]:
    """Where a replica runs. Several ranks have a bundle each, together where that is possible."""
    actor = {"num_cpus": replica.num_cpus, "num_gpus": replica.num_gpus}
    resources, labels = dict(replica.resources), dict(replica.label_selector)
    options = {"ray_actor_options": {**actor, "resources": resources}}
    if replica.autoscaling is not None and replica.autoscaling.warm_processes:
        options["ray_actor_options"]["runtime_env"] = warm_environment()
    if num_ranks == 1:
        if labels:
            options["ray_actor_options"]["label_selector"] = labels
        return options
    bundle = {"CPU": replica.num_cpus, "GPU": replica.num_gpus, **resources}
    group: dict[str, Any] = {
        "placement_group_bundles": [{name: n for name, n in bundle.items() if n}] * num_ranks,
        "placement_group_strategy": "PACK",
    }
    if labels:
        group["placement_group_bundle_label_selector"] = [labels] * num_ranks
    return options | group


def ingress_options(config: AppConfig) -> dict[str, Any]:
    """Options of the Ingress deployment. It drains no faster than its slowest request."""
    ingress = config.ingress
    options: dict[str, Any] = {
        "ray_actor_options": {
            "num_cpus": ingress.num_cpus,
            "resources": dict(ingress.resources),
        },
        "max_ongoing_requests": ingress.max_ongoing_requests,
        "health_check_period_s": config.replica.health_check_period_s,
        "health_check_timeout_s": config.replica.health_check_timeout_s,
        "graceful_shutdown_timeout_s": config.api.limits.request_timeout_s,
        "graceful_shutdown_wait_loop_s": _DRAIN_POLL_S,
        "max_constructor_retry_count": _CONSTRUCTOR_TRIES,
    }
    if ingress.autoscaling is None:
        options["num_replicas"] = ingress.num_replicas
    else:
        options["autoscaling_config"] = autoscaling_options(ingress.autoscaling)
    return options


def targets_of(config: AppConfig) -> SloClass:
    """What replicas measure their load against."""
    return (config.replica.autoscaling or AutoscalingConfig()).targets
