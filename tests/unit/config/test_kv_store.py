"""The tiers' configuration: what must not be, and what says so."""

from typing import Any

import pytest
from pydantic import ValidationError

from rtp_serve.config.kv_store import KVStoreConfig


def pinned(*prefixes: dict[str, Any], enable: bool = True) -> KVStoreConfig:
    return KVStoreConfig.model_validate({"host": {"enable": enable}, "pinned": prefixes})


def test_a_pinned_prefix_is_a_text_or_messages():
    message = {"role": "system", "content": "You are"}
    store = pinned({"name": "a", "prompt": "You are"}, {"name": "b", "messages": [message]})
    assert store.pinned[1].messages[0].model_dump() == message
    for source in ({}, {"prompt": ""}, {"prompt": "You are", "messages": [message]}):
        with pytest.raises(ValidationError, match="'a': give either prompt or messages"):
            pinned({"name": "a", **source})


def test_pinned_prefixes_need_names_of_their_own_and_the_host_tier():
    one = {"name": "a", "prompt": "You are"}
    with pytest.raises(ValidationError, match="names must differ"):
        pinned(one, one)
    with pytest.raises(ValidationError, match=r"pinned needs host\.enable"):
        pinned(one, enable=False)
