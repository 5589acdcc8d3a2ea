"""The engine's control plane over a worker whose output depends on every token of its KV memory."""

import random

import pytest

from rtp_serve.clock import VirtualClock
from rtp_serve.engine.output import SchedulerOutput
from rtp_serve.engine.request import FinishReason
from rtp_serve.errors import ContextLengthExceeded, InvalidRequest
from rtp_serve.observability.metrics import PrometheusSink
from tests.factories import (
    EOS,
    VOCAB_SIZE,
    MemoryWorker,
    make_core,
    make_prompt,
    make_request,
    predicted_tokens,
    run_to_end,
)


def test_a_request_alone_gets_the_predicted_tokens():
    request = make_request(prompt=make_prompt(20), max_tokens=30, ignore_eos=True)
    assert run_to_end(make_core(), [request]) == {"r0": [predicted_tokens(request)]}


@pytest.mark.parametrize("budget", [8, 17, 64])
@pytest.mark.parametrize("caching", [True, False])
@pytest.mark.parametrize("num_blocks", [14, 200])
@pytest.mark.parametrize("policy", ["fcfs", "priority"])
def test_outputs_do_not_depend_on_chunks_cache_preemption_or_batch(
    budget: int, caching: bool, num_blocks: int, policy: str
):
    rng = random.Random(budget)
    shared = make_prompt(40)
    requests = [
        make_request(
            f"r{i}",
            shared[: rng.randrange(1, 41)] + make_prompt(rng.randrange(1, 60), seed=i),
            max_tokens=rng.randrange(1, 50),
            priority=rng.randrange(3),
            ignore_eos=rng.random() < 0.5,
            n=rng.choice([1, 1, 3]),
        )
        for i in range(12)
    ]
    core = make_core(
        num_blocks=num_blocks,
        max_model_len=150,
        enable_prefix_caching=caching,
        max_num_batched_tokens=budget,
        policy=policy,
    )
    outputs = run_to_end(core, requests)
    for request in requests:
        expected = [predicted_tokens(request, i) for i in range(request.sampling.n)]
        assert outputs[request.request_id] == expected
    assert core.stats.num_free_blocks == core.stats.num_blocks


def test_a_small_pool_does_preempt():
    """Guards the test above: without preemption it would prove nothing about it."""
    core = make_core(num_blocks=14, max_model_len=150)
    requests = [make_request(f"r{i}", make_prompt(30, i), max_tokens=60) for i in range(6)]
    run_to_end(core, requests)
    assert core.counters.num_preemptions > 0


def test_one_long_prompt_does_not_stall_running_sequences():
    core = make_core(num_blocks=200, max_num_batched_tokens=16)
    core.add_request(make_request("old", make_prompt(200), max_tokens=2))
    core.step()
    core.add_request(make_request("short", make_prompt(2, 1), max_tokens=50, ignore_eos=True))
    for _ in range(30):
        core.step()
    long, short = make_prompt(150, 3), "short"
    core.add_request(make_request("long", long, max_tokens=2))
    for _ in range(5):
        assert short in {delta.request_id for delta in core.step()}


def test_a_running_decode_gets_its_token_beside_an_older_prefill():
    core = make_core(num_blocks=200, max_num_batched_tokens=64)
    core.add_request(make_request("first", make_prompt(70), max_tokens=50, ignore_eos=True))
    core.add_request(make_request("second", make_prompt(400, 1), max_tokens=2))
    core.step()
    assert {d.request_id for d in core.step()} == {"first"}
    for _ in range(4):
        assert {d.request_id for d in core.step()} == {"first"}


@pytest.mark.parametrize(("enable_partial_hits", "num_cached"), [(True, 47), (False, 32)])
def test_a_prompt_that_is_cached_whole_has_a_token_computed(
    enable_partial_hits: bool, num_cached: int
):
    core = make_core(enable_partial_hits=enable_partial_hits)
    prompt = make_prompt(48)
    run_to_end(core, [make_request("a", prompt, max_tokens=1)])
    core.add_request(make_request("b", prompt, max_tokens=1))
    (delta,) = core.step()
    assert delta.num_cached_tokens == num_cached


def test_requests_of_one_step_share_their_prefix():
    worker = MemoryWorker(64)
    core = make_core(worker=worker, max_num_batched_tokens=256)
    request = make_request("a", make_prompt(40), n=4, max_tokens=4, ignore_eos=True)
    outputs = run_to_end(core, [request])
    assert worker.steps[0].num_scheduled_tokens == (40, 8, 8, 8)
    assert outputs["a"] == [predicted_tokens(request, i) for i in range(4)]


def test_a_salt_keeps_tenants_apart():
    core = make_core()
    run_to_end(core, [make_request("a", make_prompt(48), salt="alice", max_tokens=1)])
    core.add_request(make_request("b", make_prompt(48), salt="bob", max_tokens=1))
    assert core.step()[0].num_cached_tokens == 0


def test_priority_goes_first():
    core = make_core(policy="priority", max_num_seqs=1)
    for i, priority in enumerate([5, 1, 3]):
        core.add_request(make_request(f"r{i}", make_prompt(5, i), priority=priority, max_tokens=1))
    order = [core.step()[0].request_id for _ in range(3)]
    assert order == ["r1", "r2", "r0"]


def test_abort_frees_blocks_wherever_the_sequence_is():
    core = make_core(num_blocks=14, max_model_len=150)
    for i in range(8):
        core.add_request(make_request(f"r{i}", make_prompt(30, i), max_tokens=60))
    for step in range(40):
        core.step()
        if step % 5 == 0:
            core.abort(f"r{step // 5}")
        core.check_invariants()
    for i in range(8):
        core.abort(f"r{i}")
    assert core.stats.num_free_blocks == core.stats.num_blocks
    assert not core.has_work
    core.check_invariants()


def test_aborting_twice_or_what_nobody_knows_is_harmless():
    core = make_core()
    core.add_request(make_request("a"))
    core.abort("a")
    core.abort("a")
    core.abort("ghost")
    assert not core.has_work


def test_the_worker_forgets_what_was_aborted_and_preempted():
    """MemoryWorker raises if it is told of a sequence it still has, or to forget one it has not."""
    worker = MemoryWorker(14)
    core = make_core(num_blocks=14, max_model_len=150, worker=worker)
    for i in range(6):
        core.add_request(make_request(f"r{i}", make_prompt(30, i), max_tokens=60))
    for _ in range(10):
        core.step()
    core.abort("r1")
    run_to_end(core)
    core.add_request(make_request("last", max_tokens=1))
    core.step()
    assert len(worker._seqs) <= 1


def find_eos_request(**sampling: int) -> tuple[int, list[int]]:
    """A seed whose prediction meets EOS within 100 tokens but not at once."""
    for seed in range(200):
        request = make_request(seed=seed, max_tokens=400, **sampling)
        tokens = predicted_tokens(request)
        if tokens[-1] == EOS and len(tokens) > 5:
            return seed, tokens
    raise AssertionError("no seed meets EOS")


def test_an_end_token_stops_with_its_id():
    seed, tokens = find_eos_request()
    core = make_core()
    core.add_request(make_request(seed=seed, max_tokens=400))
    deltas = []
    while core.has_work:
        deltas += core.step()
    assert [t for d in deltas for t in d.token_ids] == tokens
    assert (deltas[-1].finish_reason, deltas[-1].stop_token_id) == (FinishReason.STOP, EOS)


def test_min_tokens_passes_over_an_early_end_token():
    seed, tokens = find_eos_request()
    core = make_core()
    request = make_request(seed=seed, max_tokens=400, min_tokens=len(tokens) + 1)
    (output,) = run_to_end(core, [request])["r0"]
    assert len(output) > len(tokens)


def test_the_context_limit_ends_a_sequence_with_length():
    core = make_core(max_model_len=20)
    request = make_request(prompt=make_prompt(15), max_tokens=400, ignore_eos=True)
    core.add_request(request)
    deltas = []
    while core.has_work:
        deltas += core.step()
    assert len(deltas) == 5
    assert deltas[-1].finish_reason is FinishReason.LENGTH


@pytest.mark.parametrize(
    ("prompt", "sampling", "param"),
    [
        ((), {}, "prompt"),
        ((VOCAB_SIZE,), {}, "prompt"),
        ((-1,), {}, "prompt"),
        ((1, 2.5), {}, "prompt"),
        ((1, "a"), {}, "prompt"),
        ((1,), {"logit_bias": {VOCAB_SIZE: 1.0}}, "logit_bias"),
        ((1,), {"stop_token_ids": (VOCAB_SIZE,)}, "stop_token_ids"),
        ((1,), {"bad_words": ((1, VOCAB_SIZE),)}, "bad_words"),
        ((1,), {"logit_bias": {1.5: 1.0}}, "logit_bias"),
        ((1,), {"stop_token_ids": (1.5,)}, "stop_token_ids"),
        ((1,), {"bad_words": (("a",),)}, "bad_words"),
    ],
)
def test_what_the_model_cannot_run_is_refused_by_name(
    prompt: tuple[int, ...], sampling: dict, param: str
):
    core = make_core()
    with pytest.raises(InvalidRequest) as caught:
        core.add_request(make_request(prompt=prompt, **sampling))
    assert caught.value.param == param
    assert not core.has_work


def test_a_prompt_beyond_the_context_names_both_numbers():
    core = make_core(max_model_len=32)
    with pytest.raises(ContextLengthExceeded, match=r"32 tokens.*31"):
        core.add_request(make_request(prompt=make_prompt(32)))


@pytest.mark.parametrize("broken_at", [32, 45])
def test_a_sequence_that_cannot_be_computed_ends_alone(broken_at: int):
    """At 32 in the middle of its prompt, at 45 while it generates."""
    worker = MemoryWorker(64)
    worker.broken_at_length = broken_at
    core = make_core(worker=worker, max_num_batched_tokens=32)
    core.add_request(make_request("broken", make_prompt(40), max_tokens=20, ignore_eos=True))
    healthy = make_request("healthy", make_prompt(3), max_tokens=20, ignore_eos=True)
    core.add_request(healthy)
    deltas = []
    while core.has_work:
        deltas += core.step()
        core.check_invariants()
    last = [d for d in deltas if d.request_id == "broken"][-1]
    assert (last.finish_reason, last.error) == (FinishReason.ERROR, "broken")
    tokens = [t for d in deltas if d.request_id == "healthy" for t in d.token_ids]
    assert tokens == predicted_tokens(healthy)


class FailingWorker(MemoryWorker):
    """Fails once, with its memory not yet written."""

    has_failed = False

    def _write_all(self, scheduled: SchedulerOutput) -> None:
        if not self.has_failed:
            self.has_failed = True
            raise RuntimeError("injected failure")
        super()._write_all(scheduled)


def test_what_a_failed_step_did_not_write_is_not_hit_later():
    core = make_core(worker=FailingWorker(64))
    request = make_request("a", make_prompt(48))
    core.add_request(request)
    with pytest.raises(RuntimeError):
        core.step()
    core.abort("a")
    assert run_to_end(core, [request])["a"] == [predicted_tokens(request)]


def test_a_request_id_in_use_is_refused():
    core = make_core()
    core.add_request(make_request("a"))
    with pytest.raises(InvalidRequest, match="in use"):
        core.add_request(make_request("a"))


def test_latencies_are_measured_from_arrival():
    clock, sink = VirtualClock(), PrometheusSink()
    core = make_core(clock=clock, sink=sink)
    core.add_request(make_request(max_tokens=3, ignore_eos=True))
    clock.advance(2.0)
    for _ in range(3):
        core.step()
        clock.advance(0.5)
    text = sink.render()
    assert "rtp_serve:time_to_first_token_seconds_sum 2.0" in text
    assert "rtp_serve:inter_token_latency_seconds_sum 1.0" in text
    assert "rtp_serve:request_time_per_output_token_seconds_sum 0.5" in text
    assert "rtp_serve:e2e_request_latency_seconds_sum 3.0" in text
    assert 'rtp_serve:request_success_total{finished_reason="length"} 1.0' in text
    assert "rtp_serve:num_requests_running 0.0" in text
