"""What applications ask of a cluster, against what it has: Ray itself would wait for more nodes."""

from collections import defaultdict
from collections.abc import Iterable, Mapping

from rtp_serve.config.serving import AppConfig
from rtp_serve.errors import ConfigError

_SLACK = 1e-6
"""Ray counts in fractions."""


def check_demand(configs: Iterable[AppConfig], resources: Mapping[str, float]) -> None:
    """Raises ConfigError if one machine with these resources cannot run all of them at once."""
    needed: dict[str, float] = defaultdict(float)
    for config in configs:
        _add_demand(config, needed)
    for name, amount in needed.items():
        there = resources.get(name, 0)
        if amount > there + _SLACK:
            raise ConfigError(
                f"replicas, their ranks and ingresses reserve {amount:g} {name}, and this machine "
                f"has {there:g}: lower replica.num_cpus, num_gpus or num_replicas, or "
                "engine.parallel"
            )


def _add_demand(config: AppConfig, needed: dict[str, float]) -> None:
    ingress = config.ingress
    fewest = ingress.autoscaling.min_replicas if ingress.autoscaling else ingress.num_replicas
    _add({"CPU": ingress.num_cpus, **ingress.resources}, fewest, needed)
    for _, pool in config.pools:
        replica = pool.replica
        autoscaling = replica.autoscaling
        num_replicas = autoscaling.min_replicas if autoscaling else replica.num_replicas
        rank = {"CPU": replica.num_cpus, "GPU": replica.num_gpus, **replica.resources}
        _add(rank, num_replicas * pool.engine.parallel.world_size, needed)


def _add(each: Mapping[str, float], count: int, needed: dict[str, float]) -> None:
    for name, amount in each.items():
        needed[name] += amount * count
