from typing import Any

import pytest

from rtp_serve.config.autoscaling import AutoscalingConfig, IngressAutoscalingConfig
from rtp_serve.config.parse import parse_config
from rtp_serve.errors import ConfigError


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"min_replicas": 5, "max_replicas": 2}, "must rise, got 5, 5 and 2"),
        ({"initial_replicas": 0}, "must rise, got 1, 0 and 4"),
        ({"target_ongoing_requests": 2}, "belongs to policy 'ongoing-requests'"),
        ({"policy": "ongoing-requests"}, "which needs it, got None"),
        ({"look_back_period_s": 0.4}, "longer than metrics_interval_s, got 0.4 and 0.5"),
        ({"attainment": 1.0}, "attainment"),
        ({"upscale_delay": 1}, "did you mean 'upscale_delay_s'"),
    ],
)
def test_a_wrong_setting_is_named(values: dict[str, Any], message: str):
    with pytest.raises(ConfigError, match=message):
        parse_config(AutoscalingConfig, values)


def test_replicas_are_held_for_two_start_ups_unless_told():
    config = AutoscalingConfig.model_validate({"forecast": {"startup_s": 30}})
    assert config.hold_s == 60
    assert config.model_copy(update={"downscale_delay_s": 0.0}).hold_s == 0


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"min_replicas": 0}, "min_replicas"),
        ({"min_replicas": 5, "max_replicas": 2}, "must rise, got 5, 5 and 2"),
        ({"target_utilization": 1.1}, "target_utilization"),
        ({"metrics_interval_s": 9}, "longer than metrics_interval_s, got 5.0 and 9.0"),
        ({"attainment": 0.9}, "unknown key 'attainment' in IngressAutoscalingConfig"),
    ],
)
def test_a_wrong_setting_of_ingresses_is_named(values: dict[str, Any], message: str):
    with pytest.raises(ConfigError, match=message):
        parse_config(IngressAutoscalingConfig, values)
