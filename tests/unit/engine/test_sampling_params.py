import math

import pytest

from rtp_serve.engine.sampling_params import SamplingParams
from rtp_serve.errors import InvalidRequest


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("n", 0), ("n", 17), ("n", 1.5), ("temperature", -0.1), ("temperature", math.nan),
        ("temperature", True), ("top_p", 0.0), ("top_p", 1.01), ("top_k", -1), ("min_p", 1.1),
        ("presence_penalty", 2.1), ("frequency_penalty", -2.1), ("repetition_penalty", 0.0),
        ("max_tokens", 0), ("min_tokens", -1), ("seed", 1 << 64), ("logprobs", 21),
        ("prompt_logprobs", -1), ("stop", ("",)), ("stop", ("a",) * 17), ("bad_words", ((),)),
        ("logit_bias", {1: 101.0}), ("logit_bias", {1: math.nan}), ("temperature", "hot"),
        ("logit_bias", {1: "much"}), ("logit_bias", [1]), ("stop", "word"), ("stop", (1,)),
        ("stop_token_ids", 5), ("bad_words", ("word",)), ("ignore_eos", "no"),
        ("n", 10**400), ("seed", 10**400), ("temperature", math.inf), ("min_p", math.nan),
    ],
)  # fmt: skip
def test_a_wrong_value_is_refused_by_name(field: str, value: object):
    with pytest.raises(InvalidRequest, match=field) as caught:
        SamplingParams(**{field: value})
    assert caught.value.param == field
    assert caught.value.status == 400


def test_more_min_tokens_than_max_tokens_is_refused():
    with pytest.raises(InvalidRequest, match="min_tokens must be an integer from 0 to 5, got 6"):
        SamplingParams(max_tokens=5, min_tokens=6)


def test_the_message_names_the_range_and_the_value():
    with pytest.raises(InvalidRequest, match=r"top_p must be a number above 0\.0 to 1\.0, got 0"):
        SamplingParams(top_p=0)
