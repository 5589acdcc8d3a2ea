from deployments.exposition import merge_expositions
from rtp_serve.observability.metrics import NUM_RUNNING, REQUESTS_FINISHED, TTFT, PrometheusSink


def text(running: int, finished: int) -> str:
    sink = PrometheusSink()
    sink.set(NUM_RUNNING, running)
    sink.add(REQUESTS_FINISHED, finished, {"finished_reason": "stop"})
    sink.observe(TTFT, 0.3)
    return sink.render()


def test_each_family_appears_once_with_every_replicas_samples():
    merged = merge_expositions({"a": text(1, 10), "b": text(2, 20)}).splitlines()
    assert merged.count("# TYPE rtp_serve:num_requests_running gauge") == 1
    assert merged.count("# TYPE rtp_serve:time_to_first_token_seconds histogram") == 1
    for sample in (
        'rtp_serve:num_requests_running{replica="a"} 1.0',
        'rtp_serve:num_requests_running{replica="b"} 2.0',
        'rtp_serve:request_success_total{finished_reason="stop",replica="b"} 20.0',
        'rtp_serve:time_to_first_token_seconds_bucket{le="0.5",replica="a"} 1.0',
        'rtp_serve:time_to_first_token_seconds_count{replica="b"} 1.0',
    ):
        assert sample in merged


def test_no_replicas_give_an_empty_text():
    assert merge_expositions({}) == ""
