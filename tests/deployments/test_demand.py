"""What a machine cannot run is said before Ray waits for another one."""

import pytest

from deployments.demand import check_demand
from rtp_serve.config.serving import AppConfig
from rtp_serve.errors import ConfigError


def config(**settings: object) -> AppConfig:
    return AppConfig.model_validate({"ingress": {"num_cpus": 0.1}, **settings})


def test_each_rank_and_each_ingress_counts():
    ranks = {"engine": {"parallel": {"tp": 3}}, "replica": {"num_cpus": 0.5, "num_replicas": 2}}
    check_demand([config(**ranks)], {"CPU": 3.1})
    with pytest.raises(ConfigError, match=r"reserve 3\.1 CPU, and this machine has 3:"):
        check_demand([config(**ranks)], {"CPU": 3.0})
    with pytest.raises(ConfigError, match=r"reserve 6\.2 CPU"):
        check_demand([config(**ranks), config(**ranks)], {"CPU": 6.0})


def test_what_the_machine_has_not_at_all():
    with pytest.raises(ConfigError, match="reserve 1 GPU, and this machine has 0"):
        check_demand([config(replica={"num_gpus": 1})], {"CPU": 8.0})


def test_an_autoscaled_application_begins_with_its_fewest():
    check_demand(
        [config(replica={"num_cpus": 1, "autoscaling": {"min_replicas": 1, "max_replicas": 9}})],
        {"CPU": 1.1},
    )
    check_demand(
        [config(ingress={"num_cpus": 1, "autoscaling": {"max_replicas": 9}})], {"CPU": 1.5}
    )
