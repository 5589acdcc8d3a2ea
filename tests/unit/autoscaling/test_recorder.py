import pytest

from rtp_serve.autoscaling.load import ReplicaLoad
from rtp_serve.autoscaling.recorder import LoadRecorder
from rtp_serve.config.routing import SloClass

TARGETS = SloClass.model_validate(
    {"ttft": [{"max_tokens": 100, "ttft_s": 1.0}, {"ttft_s": 3.0}], "itl_s": 0.1}
)


@pytest.fixture
def recorder() -> LoadRecorder:
    return LoadRecorder(TARGETS, kv_capacity_tokens=1000)


def test_service_is_what_is_left_of_the_time_without_the_wait(recorder: LoadRecorder):
    recorder.arrived("a", 100, 0.0)
    recorder.arrived("b", 200, 0.5)
    recorder.arrived("c", 50, 9.0)
    for request_id, now in (("a", 1.0), ("b", 3.0), ("c", 9.25)):
        recorder.first_token(request_id, now)
    load = recorder.load(10.0)
    assert load.service_s == pytest.approx(1.0 + 2.0 + 0.25)
    assert load.service_s_squared == pytest.approx(1.0 + 4.0 + 0.0625)
    assert (load.num_served, load.served_tokens) == (3, 350)


def test_targets_go_by_prompt_length(recorder: LoadRecorder):
    for request_id, num_tokens in (("short", 100), ("long", 101)):
        recorder.arrived(request_id, num_tokens, 0.0)
        recorder.first_token(request_id, 2.0)
    load = recorder.load(2.0)
    assert load.num_in_time == 1
    assert load.num_arrivals == (1, 1)
    assert load.arrived_tokens == (100, 101)


def test_answers_count_by_their_mean_gap(recorder: LoadRecorder):
    for request_id, ended_s in (("smooth", 1.9), ("slow", 2.1)):
        recorder.arrived(request_id, 10, 0.0)
        recorder.first_token(request_id, 1.0)
        recorder.ended(request_id, 11, ended_s)
    load = recorder.load(3.0)
    assert (load.num_ended, load.num_smooth, load.num_gaps) == (2, 1, 20)
    assert load.decode_s == pytest.approx(0.9 + 1.1)


def test_the_present_is_what_is_there(recorder: LoadRecorder):
    recorder.arrived("waits", 70, 1.0)
    recorder.arrived("decodes", 30, 2.0)
    recorder.first_token("decodes", 3.0)
    load = recorder.load(4.0)
    assert (load.num_waiting, load.waiting_tokens, load.oldest_wait_s) == (1, 70, 3.0)
    assert (load.num_decoding, load.context_tokens, load.kv_capacity_tokens) == (1, 100, 1000)
    recorder.ended("waits", 0, 5.0)
    assert recorder.load(5.0).num_waiting == 0


def test_it_travels_as_numbers(recorder: LoadRecorder):
    recorder.arrived("a", 70, 1.0)
    recorder.first_token("a", 1.5)
    load = recorder.load(2.0)
    values = load.floats()
    assert all(isinstance(each, float) for each in values.values())
    assert ReplicaLoad.from_floats(values | {"another": 1.0}) == load


def test_a_replica_that_starts_again_counts_from_its_start(recorder: LoadRecorder):
    for number in range(3):
        recorder.arrived(str(number), 10, 0.0)
    before = recorder.load(1.0)
    again = LoadRecorder(TARGETS, 1000)
    again.arrived("a", 10, 2.0)
    assert again.load(2.0).since(before).num_arrivals == (1, 0)
    recorder.arrived("b", 200, 2.0)
    assert recorder.load(2.0).since(before).num_arrivals == (0, 1)
