from typing import Any

import pytest

from rtp_serve.config.exposure import is_loopback, require_keys_beyond_loopback
from rtp_serve.config.parse import parse_config
from rtp_serve.config.serving import AppConfig
from rtp_serve.errors import ConfigError

KEYS = {"auth": {"api_keys": [{"name": "alice", "sha256": "0" * 64}]}}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"engin": {}}, "unknown key 'engin' in AppConfig; did you mean 'engine'?"),
        ({"engine": {"modle": "x"}}, "engine: unknown key 'modle'"),
        ({"replica": {"num_replicas": 0}}, "replica.num_replicas"),
        ({"replica": {"num_replicas": 2, "autoscaling": {}}}, "num_replicas and autoscaling"),
        ({"ingress": {"num_replicas": 2, "autoscaling": {}}}, "num_replicas and autoscaling"),
        ({"channel": {"tcp_ports": [9, 3]}}, "the lower port comes first"),
        ({"channel": {"tcp_ports": [0, 3]}}, "channel.tcp_ports.0"),
        ({"routing": {"replication": {"enable": True}}}, "needs engine.kv_store.remote.enable"),
    ],
)
def test_a_wrong_setting_is_named(values: dict[str, Any], message: str):
    with pytest.raises(ConfigError, match=message.replace("?", r"\?")):
        parse_config(AppConfig, values)


@pytest.mark.parametrize(
    ("values", "has_master"),
    [
        ({}, False),
        ({"replica": {"num_replicas": 2}}, True),
        ({"replica": {"autoscaling": {"max_replicas": 3}}}, True),
        ({"replica": {"autoscaling": {"max_replicas": 1}}}, False),
        ({"routing": {"master": "always"}}, True),
        ({"routing": {"master": "never"}, "replica": {"num_replicas": 2}}, False),
    ],
)
def test_there_is_a_master_where_there_can_be_several_replicas(
    values: dict[str, Any], has_master: bool
):
    assert (parse_config(AppConfig, values).master is not None) == has_master


def test_the_master_s_blocks_are_the_engine_s():
    config = parse_config(AppConfig, {"routing": {"master": "always", "policy": "round-robin"}})
    assert config.master is not None
    assert config.master.policy == "round-robin"
    assert config.master.block_size == config.engine.cache.block_size
    with pytest.raises(ConfigError, match=r"routing.block_size: must be engine.cache.block_size"):
        parse_config(AppConfig, {"routing": {"block_size": 32}})


def test_the_port_range_includes_both_ends_and_is_empty_by_default():
    config = parse_config(AppConfig, {"channel": {"tcp_ports": [20000, 20002]}})
    assert list(config.channel.tcp_port_range) == [20000, 20001, 20002]
    assert not AppConfig().channel.tcp_port_range


def test_a_replica_holds_more_calls_than_its_engine_takes():
    scheduler = {"max_num_seqs": 8, "max_queued": 10}
    config = parse_config(AppConfig, {"engine": {"scheduler": scheduler}})
    assert config.max_ongoing_requests > 18


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("127.0.0.1", True),
        ("127.1.2.3", True),
        ("::1", True),
        ("localhost", True),
        ("0.0.0.0", False),
        ("::", False),
        ("192.168.0.1", False),
        ("example.org", False),
    ],
)
def test_loopback_is_what_this_machine_alone_reaches(host: str, expected: bool):
    assert is_loopback(host) is expected


@pytest.mark.parametrize(
    ("values", "host"),
    [
        ({}, "127.0.0.1"),
        ({}, None),
        ({"api": KEYS}, "0.0.0.0"),
        ({"ingress": {"allow_public_without_keys": True}}, "0.0.0.0"),
    ],
)
def test_these_may_listen(values: dict[str, Any], host: str | None):
    require_keys_beyond_loopback(parse_config(AppConfig, values), host)


def test_an_open_server_on_the_network_is_refused_with_the_ways_out():
    with pytest.raises(ConfigError, match=r"'0\.0\.0\.0'.*api_keys.*127\.0\.0\.1.*allow_public"):
        require_keys_beyond_loopback(AppConfig(), "0.0.0.0")
