"""/cache: who may ask, what is told, and what reaches the engines."""

from typing import Any

import pytest

from rtp_serve.config.api import AuthConfig
from rtp_serve.engine.cache_answers import CacheStats, DeviceStats, TiersStats
from rtp_serve.kv_store.client import StoreStats
from rtp_serve.kv_store.disk.health import TierState
from rtp_serve.kv_store.disk.stats import DiskCounts, DiskStats
from rtp_serve.kv_store.index_stats import IndexCounts, IndexStats, SlabState
from rtp_serve.kv_store.tier_counts import Tier, TierCounts
from tests.unit.api.serving import HELLO, digest, make_client, make_engine, tiny_tokenizer

ADMIN = {"authorization": "Bearer root"}
NO_ADMIN = {"authorization": "Bearer key"}
KEYS = [{"name": "red", "sha256": digest("key")}]
TRIM, PIN, STATS = "/cache/trim", "/cache/pin", "/cache/stats"

SILENT = StoreStats(IndexStats({}, {}, 0, 0, 0), 0, 0, None, 0, 0)


def store_stats(num_slabs: int = 8) -> StoreStats:
    states = {SlabState.FREE: num_slabs - 2, SlabState.READY: 2}
    tenants = {"red": 8192, "\ud800": 0}
    host = IndexStats(states, tenants, 0, 1, 5, IndexCounts(hits=3))
    disk = DiskStats(TierState.READY, 4, 1, 100, 200, 1000, 0, DiskCounts(stored=4))
    return StoreStats(host, 4096, num_slabs, disk, 1, 2)


def cache_of(replica: str, store: str, stats: StoreStats) -> CacheStats:
    counts = {tier: TierCounts() for tier in Tier}
    counts[Tier.HOST] = TierCounts(restored=5, restore_s=0.5)
    counts[Tier.REMOTE] = TierCounts(restored=2)
    return CacheStats(replica, DeviceStats(100, 7, 20, 16), TiersStats(store, counts, stats))


TIERED = (
    cache_of("b", "node-1", store_stats()),
    cache_of("a", "node-1", SILENT),
    cache_of("c", "node-2", SILENT),
)


def admin_client(engine: Any = None, keys: Any = (), **app: Any) -> Any:
    auth = AuthConfig.model_validate({"api_keys": keys, "admin_token_sha256": digest("root")})
    return make_client(engine or make_engine(caches=TIERED), auth=auth, **app)


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [("GET", STATS, None), ("POST", TRIM, {"bytes": 1}), ("POST", PIN, {"prompt": "abc"})],
)
def test_caches_are_the_admins(method: str, path: str, body: Any):
    engine = make_engine(caches=TIERED)
    client = admin_client(engine, KEYS)
    body = body if "prompt" not in (body or ()) else {**body, "tenant": "red"}
    for headers, status in (({}, 401), (NO_ADMIN, 403), (ADMIN, 200)):
        answer = client.request(method, path, json=body, headers=headers)
        assert answer.status_code == status, answer.text
        assert len(engine.pinned) == (path == PIN and status == 200)
    assert make_client().request(method, path, json=body, headers=ADMIN).status_code == 403


def test_a_store_that_replicas_share_is_told_once():
    body = admin_client().get(STATS, headers=ADMIN).json()
    assert [each["replica"] for each in body["replicas"]] == ["a", "b", "c"]
    assert [each["store"] for each in body["replicas"]] == ["node-1", "node-1", "node-2"]
    assert body["replicas"][0]["device"] == {
        "num_blocks": 100, "num_held": 7, "num_cached": 20, "block_size": 16,
    }  # fmt: skip
    assert body["replicas"][0]["tiers"]["host"]["restore_s"] == 0.5
    answering, silent = body["stores"]
    assert (answering["store"], answering["is_answering"]) == ("node-1", True)
    assert answering["host"]["slabs_by_state"] == {"free": 6, "ready": 2}
    assert answering["host"]["bytes_by_tenant"] == {"red": 8192, "\\ud800": 0}
    assert answering["host"]["counts"]["hits"] == 3
    assert answering["disk"]["state"] == "ready"
    assert answering["disk"]["counts"]["stored"] == 4
    assert (answering["num_to_spill"], answering["num_not_spilled"]) == (1, 2)
    assert (silent["store"], silent["is_answering"], silent["disk"]) == ("node-2", False, None)


def test_without_tiers_stats_have_the_device_and_the_rest_is_a_conflict():
    client = admin_client(make_engine())
    body = client.get(STATS, headers=ADMIN).json()
    assert body["stores"] == []
    assert (body["replicas"][0]["store"], body["replicas"][0]["tiers"]) == (None, {})
    assert body["replicas"][0]["device"]["num_cached"] == 20
    for path, asked in ((TRIM, {"bytes": 1}), (PIN, {"prompt": "abc"})):
        answer = client.post(path, json=asked, headers=ADMIN)
        assert answer.status_code == 409
        assert answer.json()["error"]["code"] == "no_kv_tiers"
        assert "kv_store.host.enable" in answer.json()["error"]["message"]


def test_no_replica_is_a_503():
    answer = admin_client(make_engine(is_dead=True)).get(STATS, headers=ADMIN)
    assert answer.status_code == 503
    assert answer.headers["retry-after"]


def test_each_store_trims():
    answer = admin_client().post(TRIM, json={"bytes": 5000}, headers=ADMIN)
    assert answer.json() == {
        "stores": [
            {"store": "node-1", "num_bytes": 5000},
            {"store": "node-2", "num_bytes": 5000},
        ]
    }


def pin(engine: Any, keys: Any = (), **body: Any) -> Any:
    return admin_client(engine, keys).post(PIN, json=body, headers=ADMIN)


def test_the_three_forms_of_a_prefix_reach_the_engine_as_tokens():
    engine = make_engine(caches=TIERED)
    tokens = tuple(tiny_tokenizer().encode("hello there"))
    assert pin(engine, prompt="hello there").json() == {
        "num_tokens": len(tokens),
        "stores": [
            {"store": "node-1", "num_blocks": 1, "num_tokens": 16},
            {"store": "node-2", "num_blocks": 1, "num_tokens": 16},
        ],
    }
    assert pin(engine, prompt_token_ids=list(tokens), ttl_s=5).status_code == 200
    assert pin(engine, messages=HELLO["messages"], ttl_s=0.5).status_code == 200
    assert engine.pinned[0] == (tokens, "", 3600.0)
    assert engine.pinned[1] == (tokens, "", 5.0)
    chat_tokens, _, ttl_s = engine.pinned[2]
    assert tiny_tokenizer().decode(chat_tokens, False) == "<user>Hi;", "an answer is not next"
    assert ttl_s == 0.5


def test_a_pin_is_for_a_tenants_requests_with_a_salt():
    engine = make_engine(caches=TIERED)
    client = admin_client(engine, KEYS)
    body = HELLO | {"cache_salt": "s"}
    client.post("/v1/chat/completions", json=body, headers={"authorization": "Bearer key"})
    client.post(PIN, json=body | {"tenant": "red"}, headers=ADMIN)
    (_, salt, _) = engine.pinned[0]
    assert salt == engine.requests[0].cache_salt == "red/s"


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        (TRIM, {}, "bytes"),
        (TRIM, {"bytes": 0}, "bytes"),
        (TRIM, {"bytes": -1}, "bytes"),
        (TRIM, {"bytes": "1GiB"}, "bytes"),
        (TRIM, {"byte": 1}, "bytes"),
        (PIN, {}, "prompt"),
        (PIN, {"prompt": "a", "prompt_token_ids": [1]}, "prompt"),
        (PIN, {"prompt": "a", "ttl_s": 0}, "ttl_s"),
        (PIN, {"prompt": "a", "ttl_s": 7 * 86400 + 1}, "ttl_s"),
        (PIN, {"prompt": "a", "tenant": "blue"}, "tenant"),
        (PIN, {"prompt": ""}, "prompt"),
        (PIN, {"prompt": "a" * 257}, "prompt"),
        (PIN, {"prompt": "a" * 128 * 257}, "prompt"),
        (PIN, {"prompt_token_ids": []}, "prompt_token_ids"),
        (PIN, {"prompt_token_ids": [261]}, "prompt_token_ids"),
        (PIN, {"messages": []}, "messages"),
        (PIN, {"messages": HELLO["messages"] * 3}, "messages"),
    ],
)
def test_mistakes_are_named(path: str, body: Any, param: str):
    engine = make_engine(caches=TIERED)
    answer = admin_client(engine, limits={"max_messages": 2}).post(path, json=body, headers=ADMIN)
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == param
    assert not engine.pinned


def test_with_keys_a_pin_must_name_a_tenant():
    answer = pin(make_engine(caches=TIERED), KEYS, prompt="abc")
    assert answer.status_code == 400
    assert "['red']" in answer.json()["error"]["message"]


def test_an_unknown_model_is_not_pinned():
    assert pin(make_engine(caches=TIERED), prompt="abc", model="other").status_code == 404
