from typing import Any

import pytest

from deployments.metrics import RaySink
from rtp_serve.observability.metrics import NUM_RUNNING, REQUESTS_FINISHED, TTFT
from tests.deployments.applications import RaySession

pytestmark = pytest.mark.ray


def test_closing_reports_everything_that_was_kept(session: RaySession):
    reported: list[tuple[str, float]] = []
    sink = RaySink()
    for metric in (*sink._counters.values(), *sink._gauges.values(), *sink._histograms.values()):
        _note(metric, reported)
    for value in (0.1, 0.2, 0.3):
        sink.observe(TTFT, value)
        sink.set(NUM_RUNNING, value)
        sink.add(REQUESTS_FINISHED, 2, {"finished_reason": "stop"})
    assert not reported
    sink.close()
    assert sorted(reported) == [
        ("rtp_serve_num_requests_running", 0.3),
        ("rtp_serve_request_success", 6),
        ("rtp_serve_time_to_first_token_seconds", 0.1),
        ("rtp_serve_time_to_first_token_seconds", 0.2),
        ("rtp_serve_time_to_first_token_seconds", 0.3),
    ]


def _note(metric: Any, reported: list[tuple[str, float]]) -> None:
    """Have one of Ray's metrics tell us what it is given."""
    name = metric.info["name"]
    metric._record = lambda value, tags=None: reported.append((name, value))
