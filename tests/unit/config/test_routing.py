from typing import Any, get_args

import pytest
from pydantic import ValidationError

from rtp_serve.config.routing import RoutingConfig
from rtp_serve.routing.policies.registry import POLICIES


def test_the_policies_that_may_be_named_are_those_there_are():
    assert set(get_args(RoutingConfig.model_fields["policy"].annotation)) == set(POLICIES)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"polcy": "priced"}, "did you mean 'policy'"),
        ({"policy": "best"}, "priced"),
        ({"slo_classes": {"chat": {}}}, "needs 'default', got ['chat']"),
        (
            {"slo_classes": {"default": {"ttft": [{"max_tokens": 9}, {"max_tokens": 5}]}}},
            "must rise",
        ),
        ({"slo_classes": {"default": {"ttft": [{}, {"max_tokens": 5}]}}}, "must rise"),
        ({"admission": {"weights": {"a": 0}}}, "must be above 0, got {'a': 0.0}"),
        ({"transit_timeout_s": 9, "in_flight_timeout_s": 5}, "must not exceed"),
    ],
)
def test_a_wrong_setting_is_named(values: dict[str, Any], expected: str):
    with pytest.raises(ValidationError) as error:
        RoutingConfig.model_validate(values)
    assert expected in str(error.value)
