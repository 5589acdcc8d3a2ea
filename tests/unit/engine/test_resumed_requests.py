"""A request that another engine has begun goes on as if nobody had interrupted it."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rtp_serve.engine.core import EngineCore
from rtp_serve.engine.request import FinishReason, Request, SequenceDelta
from rtp_serve.errors import InvalidRequest, ModelChanged
from tests.factories import (
    EOS,
    VOCAB_SIZE,
    MemoryWorker,
    make_core,
    make_prompt,
    make_request,
    make_version,
    predicted_tokens,
    run_to_end,
)


def run_deltas(core: EngineCore, request: Request) -> list[SequenceDelta]:
    core.add_request(request)
    deltas = []
    while core.has_work:
        deltas += core.step()
        core.check_invariants()
    return deltas


def resumed(request: Request, *cuts: int | None) -> Request:
    """As after `cuts[i]` tokens of sequence i; None for one that has ended."""
    emitted = tuple(
        None if cut is None else tuple(predicted_tokens(request, index)[:cut])
        for index, cut in enumerate(cuts)
    )
    return replace(request, emitted=emitted)


@settings(max_examples=60, deadline=None)
@given(
    cut=st.integers(0, 39),
    prompt=st.integers(1, 70),
    caching=st.booleans(),
    budget=st.sampled_from([8, 64]),
)
def test_it_gives_the_rest_of_the_tokens(cut: int, prompt: int, caching: bool, budget: int):
    request = make_request(prompt=make_prompt(prompt), max_tokens=40, ignore_eos=True)
    core = make_core(enable_prefix_caching=caching, max_num_batched_tokens=budget)
    deltas = run_deltas(core, resumed(request, cut))
    got = [token_id for delta in deltas for token_id in delta.token_ids]
    assert got == predicted_tokens(request)[cut:]
    assert [delta.finish_reason for delta in deltas][-1] is FinishReason.LENGTH
    assert core.stats.num_free_blocks == core.stats.num_blocks


def test_sequences_go_on_each_by_itself_and_ended_ones_stay_ended():
    request = make_request(prompt=make_prompt(30), n=4, max_tokens=20, ignore_eos=True)
    outputs = run_to_end(make_core(), [resumed(request, 7, None, 0, 19)])["r0"]
    expected = [predicted_tokens(request, index) for index in range(4)]
    assert outputs == [expected[0][7:], [], expected[2], expected[3][19:]]


def test_an_end_token_ends_it_and_the_least_number_of_tokens_counts_what_was_emitted():
    seed = next(
        seed
        for seed in range(200)
        if 5 < len(predicted_tokens(make_request(seed=seed, max_tokens=300))) < 300
    )
    request = make_request(seed=seed, max_tokens=300)
    whole = predicted_tokens(request)
    cut = len(whole) - 3
    (output,) = run_to_end(make_core(), [resumed(request, cut)])["r0"]
    assert output == whole[cut:]
    assert output[-1] == EOS
    patient = make_request(seed=seed, max_tokens=300, min_tokens=len(whole))
    (output,) = run_to_end(make_core(), [resumed(patient, cut)])["r0"]
    assert output == whole[cut:]


def test_it_comes_before_those_that_wait_and_survives_preemption():
    core = make_core(max_num_seqs=1)
    core.add_request(make_request("running", make_prompt(5), max_tokens=3, ignore_eos=True))
    core.step()
    core.add_request(make_request("new", make_prompt(5, 1), max_tokens=3, ignore_eos=True))
    for name, salt in (("begun", 2), ("begun later", 3)):
        begun = make_request(name, make_prompt(5, salt), max_tokens=3, ignore_eos=True)
        core.add_request(resumed(begun, 1))
    order = [delta.request_id for _ in range(7) for delta in core.step()]
    expected = ["running", "begun", "begun later"]
    assert order == [name for name in expected for _ in range(2)] + ["new"]

    small = make_core(num_blocks=14, max_model_len=150)
    requests = [
        make_request(f"r{i}", make_prompt(30, i), max_tokens=60, ignore_eos=True) for i in range(6)
    ]
    outputs = run_to_end(small, [resumed(request, 10) for request in requests])
    assert small.counters.num_preemptions > 0
    for request in requests:
        assert outputs[request.request_id] == [predicted_tokens(request)[10:]]


def test_the_prefix_cache_has_what_the_same_engine_emitted():
    worker = MemoryWorker(64)
    core = make_core(worker=worker)
    request = make_request(prompt=make_prompt(40), max_tokens=30, ignore_eos=True)
    run_to_end(core, [request])
    num_steps = len(worker.steps)
    deltas = run_deltas(core, resumed(request, 29))
    assert worker.steps[num_steps].num_tokens < 16
    assert deltas[0].num_cached_tokens <= 40


def test_its_first_delta_names_the_model_and_no_logprobs_of_the_prompt():
    request = make_request(max_tokens=8, ignore_eos=True, prompt_logprobs=0)
    deltas = run_deltas(make_core(), resumed(request, 3))
    assert [delta.fingerprint for delta in deltas] == ["fp_0", "", "", "", ""]
    assert not any(delta.prompt_logprobs for delta in deltas)


def test_it_runs_on_the_version_that_it_began_with_or_not_at_all():
    core = make_core()
    core.add_request(make_request("old", max_tokens=3, ignore_eos=True))
    core.step()
    core.switch(make_version(1))
    request = resumed(make_request("r", max_tokens=8, ignore_eos=True), 4)
    deltas = run_deltas(core, replace(request, fingerprint="fp_0"))
    rest = [t for delta in deltas if delta.request_id == "r" for t in delta.token_ids]
    assert rest == predicted_tokens(request)[4:]
    with pytest.raises(ModelChanged, match="fp_0"):
        core.add_request(replace(request, fingerprint="fp_0"))
    assert not core.has_work


@pytest.mark.parametrize(
    ("emitted", "message"),
    [
        (((),), "2 entries"),
        ((None, None), "not all of them None"),
        (((1,) * 8, ()), r"emitted\[0\] has 8 tokens"),
        (((VOCAB_SIZE,), ()), "token ids must be from 0"),
        (((1.5,), ()), "must be integers"),
    ],
)
def test_what_cannot_have_been_emitted_is_refused(emitted: tuple[object, ...], message: str):
    core = make_core()
    request = replace(make_request(n=2, max_tokens=8), emitted=emitted)
    with pytest.raises(InvalidRequest, match=message):
        core.add_request(request)
    assert not core.has_work
