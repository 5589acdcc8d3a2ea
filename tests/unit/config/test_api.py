from typing import Any

import pytest

from rtp_serve.config.api import ApiConfig
from rtp_serve.config.parse import parse_config
from rtp_serve.errors import ConfigError

DIGEST = "0123456789abcdef" * 4


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"auth": {"api_keys": [{"name": "a", "sha256": "secret"}]}}, "sha256 must be the 64"),
        ({"auth": {"api_keys": [{"name": "a", "sha256": DIGEST.upper()}]}}, "lower-case"),
        ({"auth": {"api_keys": [{"sha256": DIGEST}]}}, "name of its tenant"),
        ({"auth": {"api_keys": [{"name": "a/b", "sha256": DIGEST}]}}, "api_keys.0.name"),
        ({"auth": {"api_keys": [{"name": "a", "sha256": DIGEST}] * 2}}, "the same sha256"),
        ({"auth": {"admin_token_sha256": "root"}}, "admin_token_sha256 must be the 64"),
        (
            {
                "auth": {
                    "api_keys": [{"name": "a", "sha256": DIGEST}],
                    "admin_token_sha256": DIGEST,
                }
            },
            "must differ",
        ),
        ({"auth": {"keys": []}}, "did you mean 'api_keys'"),
        ({"limits": {"max_body_bytes": "4 MBit"}}, "not a size"),
        ({"limits": {"max_n": 0}}, "limits.max_n"),
    ],
)
def test_a_mistake_is_named(values: dict[str, Any], words: str):
    with pytest.raises(ConfigError, match=words):
        parse_config(ApiConfig, values)


def test_a_key_in_the_clear_is_not_repeated_in_the_error():
    with pytest.raises(ConfigError) as caught:
        parse_config(ApiConfig, {"auth": {"api_keys": [{"name": "a", "sha256": "my-secret"}]}})
    assert "my-secret" not in str(caught.value)
