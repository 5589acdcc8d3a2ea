from typing import Any

import pytest
from pydantic import ValidationError

from rtp_serve.config.disaggregation import DisaggregatedConfig


@pytest.mark.parametrize(
    ("prefill", "message"),
    [
        ({"parallel": {"tp": 2}}, r"engine.parallel .* must be equal, got \{\} and \{'tp': 2\}"),
        ({"max_model_len": 512}, "engine.max_model_len .* must be equal, got None and 512"),
        ({"cache": {"num_blocks": 64}}, "engine.cache .* must be equal"),
    ],
)
def test_replicas_switch_between_equal_engines_alone(prefill: dict[str, Any], message: str):
    DisaggregatedConfig(prefill={"engine": prefill})
    with pytest.raises(ValidationError, match=f"switching: {message}"):
        DisaggregatedConfig(prefill={"engine": prefill}, switching=True)


def test_copies_of_hot_prefixes_need_the_tiers_of_prefill_replicas():
    tiers = {"kv_store": {"host": {"enable": True}, "remote": {"enable": True}}}
    routing = {"replication": {"enable": True}}
    assert DisaggregatedConfig(engine=tiers, routing=routing).routing.replication.enable
    without = {"engine": {"kv_store": {"remote": {"enable": False}}}}
    with pytest.raises(ValidationError, match=r"needs prefill.engine.kv_store.remote.enable"):
        DisaggregatedConfig(engine=tiers, routing=routing, prefill=without)


def test_what_steps_hold_may_differ():
    engine = {"scheduler": {"max_num_batched_tokens": 2048}}
    assert DisaggregatedConfig(prefill={"engine": engine}, switching=True).switching


@pytest.mark.parametrize(
    ("switching", "shares_memory", "expected"),
    [(False, True, False), (True, True, True), (True, False, False)],
)
def test_decode_replicas_that_may_compute_for_others_share_their_memory(
    switching: bool, shares_memory: bool, expected: bool
):
    config = DisaggregatedConfig(switching=switching, transfer={"shares_memory": shares_memory})
    assert config.decode_app.engine.cache.is_shared is expected
