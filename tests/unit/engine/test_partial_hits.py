"""What the beginning of a block saves, and that it never changes a token."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from rtp_serve.engine.output import SchedulerOutput
from rtp_serve.engine.request import Request
from rtp_serve.observability.metrics import PrometheusSink
from tests.factories import (
    MemoryWorker,
    make_core,
    make_prompt,
    make_request,
    predicted_tokens,
    run_to_end,
)


def next_turn(request: Request, request_id: str, num_new: int = 20, **sampling: Any) -> Request:
    """The chat so far, and a message after it."""
    history = (*request.prompt_token_ids, *predicted_tokens(request))
    sampling = {"max_tokens": 8, "ignore_eos": True} | sampling
    return make_request(
        request_id, history + make_prompt(num_new, seed=len(request_id)), **sampling
    )


def test_the_next_turn_goes_on_in_the_last_block_of_the_one_before():
    worker = MemoryWorker(64)
    core = make_core(worker=worker)
    first = make_request("a", make_prompt(40), max_tokens=6, ignore_eos=True)
    second = next_turn(first, "b")
    run_to_end(core, [first])
    assert run_to_end(core, [second]) == {"b": [predicted_tokens(second)]}
    # 40 and 5: the last token of an answer is never computed.
    (step,) = [step for step in worker.steps if step.num_computed_tokens[:1] == (45,)][-1:]
    assert step.num_scheduled_tokens == (66 - 45,)
    assert step.block_copies == ()
    assert core.counters.partial_hits == 45 - 32


@pytest.mark.parametrize("num_new", [2, 20])
def test_branches_of_one_chat_that_start_together_copy_what_one_of_them_took(num_new: int):
    """Whether or not the block is full after that step."""
    worker = MemoryWorker(64)
    core = make_core(worker=worker, max_num_batched_tokens=512)
    first = make_request("a", make_prompt(34), max_tokens=6, ignore_eos=True)
    branches = [next_turn(first, "b" * i, num_new, max_tokens=20) for i in range(1, 5)]
    run_to_end(core, [first])
    outputs = run_to_end(core, branches)
    assert outputs == {each.request_id: [predicted_tokens(each)] for each in branches}
    (step,) = [step for step in worker.steps if step.block_copies]
    assert step.num_computed_tokens == (39,) * 4
    assert len({source for source, _ in step.block_copies}) == 1
    assert len({target for _, target in step.block_copies}) == 3


def test_a_branch_that_comes_later_copies_from_the_one_that_writes_on():
    worker = MemoryWorker(64)
    core = make_core(worker=worker)
    first = make_request("a", make_prompt(34), max_tokens=6, ignore_eos=True)
    run_to_end(core, [first])
    branches = [next_turn(first, name, num_new=1, max_tokens=30) for name in ("b", "bb")]
    core.add_request(branches[0])
    core.step()
    outputs = run_to_end(core, branches[1:])
    assert outputs["bb"] == [predicted_tokens(branches[1])]
    assert [step.num_computed_tokens for step in worker.steps if step.block_copies] == [(41, 39)]


def test_a_full_block_gives_what_it_begins_with_and_stays_findable():
    worker = MemoryWorker(64)
    core = make_core(worker=worker)
    prompt = make_prompt(64)
    long = make_request("long", prompt, max_tokens=1)
    other = make_request("other", prompt[:40] + make_prompt(20, 1), max_tokens=20)
    run_to_end(core, [long])
    assert run_to_end(core, [other]) == {"other": [predicted_tokens(other)]}
    (step,) = [step for step in worker.steps if step.block_copies]
    assert step.num_computed_tokens == (40,)
    again = make_request("again", prompt, max_tokens=4)
    assert run_to_end(core, [again]) == {"again": [predicted_tokens(again)]}
    assert core.counters.prefix_hits == 40 + 63


def test_a_block_that_is_computed_in_the_same_step_is_no_donor():
    """Copies come before the step; only its own layers could read what it writes."""
    worker = MemoryWorker(64)
    core = make_core(worker=worker, max_num_batched_tokens=512)
    prompt = make_prompt(64)
    together = [
        make_request("a", prompt, max_tokens=8),
        make_request("b", prompt[:40] + make_prompt(20, 1), max_tokens=8),
    ]
    outputs = run_to_end(core, together)
    assert outputs == {each.request_id: [predicted_tokens(each)] for each in together}
    assert worker.steps[0].num_scheduled_tokens == (64, 60 - 32)


def test_a_donor_is_done_without_where_copying_it_lacks_a_block():
    """The prompt needs every block there is."""
    worker = MemoryWorker(6)
    core = make_core(num_blocks=6, worker=worker, max_model_len=80)
    prompt = make_prompt(20)
    run_to_end(core, [make_request("a", prompt, max_tokens=1)])
    whole = make_request("b", prompt[:18] + make_prompt(58, 1), max_tokens=4, ignore_eos=True)
    assert run_to_end(core, [whole]) == {"b": [predicted_tokens(whole)]}
    assert worker.steps[1].num_computed_tokens == (16,)
    assert core.counters.partial_hits == 0


def test_what_a_sequence_that_failed_had_computed_of_a_block_is_not_reused():
    worker = MemoryWorker(64)
    worker.broken_at_length = 45
    core = make_core(worker=worker)
    request = make_request("a", make_prompt(40), max_tokens=20, ignore_eos=True)
    core.add_request(request)
    while core.has_work:
        core.step()
    worker.broken_at_length = None
    assert run_to_end(core, [request]) == {"a": [predicted_tokens(request)]}
    assert core.counters.prefix_hits == 32


class FailingWorker(MemoryWorker):
    """Fails in its second step, and what its memory holds then is lost."""

    def _write_all(self, scheduled: SchedulerOutput) -> None:
        if len(self.steps) == 2:
            self._memory[:] = -1
            raise RuntimeError("injected failure")
        super()._write_all(scheduled)


def test_a_step_that_failed_leaves_nothing_to_copy_from():
    core = make_core(worker=FailingWorker(64))
    first = make_request("a", make_prompt(14), max_tokens=1)
    run_to_end(core, [first])
    copying = make_request("b", make_prompt(8) + make_prompt(5, 1), max_tokens=4)
    core.add_request(copying)
    with pytest.raises(RuntimeError):
        core.step()
    core.abort("b")
    core.check_invariants()
    assert run_to_end(core, [copying]) == {"b": [predicted_tokens(copying)]}


def test_salts_share_no_part_of_a_block():
    core = make_core()
    for salt in ("alice", "bob"):
        run_to_end(core, [make_request(salt, make_prompt(10), salt=salt, max_tokens=1)])
    assert core.counters.prefix_hits == 0
    run_to_end(core, [make_request("again", make_prompt(10), salt="bob", max_tokens=1)])
    assert core.counters.partial_hits == 9


def test_versions_share_no_part_of_a_block():
    core = make_core()
    run_to_end(core, [make_request("a", make_prompt(10), max_tokens=1)])
    core.switch(core.load())
    request = make_request("b", make_prompt(10), max_tokens=4)
    assert run_to_end(core, [request]) == {"b": [predicted_tokens(request, version=1)]}
    assert core.counters.prefix_hits == 0


def test_partial_hits_are_counted():
    sink = PrometheusSink()
    core = make_core(sink=sink)
    for name in "ab":
        run_to_end(core, [make_request(name, make_prompt(30), max_tokens=1)])
    assert "rtp_serve:prefix_cache_hits_total 29.0" in sink.render()
    assert "rtp_serve:prefix_cache_partial_hits_total 13.0" in sink.render()


@st.composite
def turns(draw: st.DrawFn) -> list[tuple[int, int, int, int]]:
    """(earlier request, how much of it is kept, tokens of a new message, answer)."""
    return draw(
        st.lists(
            st.tuples(
                st.integers(0, 7), st.integers(0, 60), st.integers(0, 20), st.integers(1, 20)
            ),
            min_size=1,
            max_size=8,
        )
    )


@settings(max_examples=80, deadline=None)
@given(turns(), st.integers(1, 64))
def test_with_room_all_that_was_ever_computed_is_reused(
    turns: list[tuple[int, int, int, int]], budget: int
):
    core = make_core(max_num_batched_tokens=budget, max_num_seqs=1, num_blocks=200)
    computed: list[tuple[int, ...]] = []
    for i, (source, kept, num_new, max_tokens) in enumerate(turns):
        history = computed[source % len(computed)][:kept] if computed else ()
        prompt = history + make_prompt(num_new, seed=i % 3) or (7,)
        request = make_request(f"r{i}", prompt, max_tokens=max_tokens, ignore_eos=True)
        hits = core.counters.prefix_hits
        (output,) = run_to_end(core, [request])[request.request_id]
        assert output == predicted_tokens(request)
        best = max((num_common(prompt, each) for each in computed), default=0)
        assert core.counters.prefix_hits - hits == min(best, len(prompt) - 1)
        computed.append((*prompt, *output[:-1]))


def num_common(first: tuple[int, ...], second: tuple[int, ...]) -> int:
    differing = (i for i, pair in enumerate(zip(first, second, strict=False)) if len({*pair}) > 1)
    return next(differing, min(len(first), len(second)))


class ChatMachine(RuleBasedStateMachine):
    """Chats that branch anywhere, stop anywhere and run beside each other, in little memory."""

    @initialize(
        num_blocks=st.integers(12, 40), budget=st.sampled_from([4, 17, 64]), seats=st.integers(1, 4)
    )
    def start(self, num_blocks: int, budget: int, seats: int) -> None:
        self.core = make_core(
            num_blocks=num_blocks,
            max_model_len=160,
            max_num_batched_tokens=budget,
            max_num_seqs=seats,
        )
        self.histories: list[tuple[int, ...]] = [make_prompt(40)]
        self.requests: dict[str, Request] = {}
        self.outputs: dict[str, list[list[int]]] = {}
        self.num_added = 0

    @rule(
        source=st.integers(0, 5),
        kept=st.just(100) | st.integers(0, 100),
        num_new=st.integers(1, 3) | st.integers(0, 20),
        max_tokens=st.integers(1, 12),
        n=st.sampled_from([1, 1, 2]),
        salt=st.sampled_from(["", "", "x"]),
    )
    def ask(self, source: int, kept: int, num_new: int, max_tokens: int, n: int, salt: str) -> None:
        self.num_added += 1
        history = self.histories[source % len(self.histories)][:kept]
        request = make_request(
            f"r{self.num_added}",
            history + make_prompt(num_new, seed=self.num_added % 3) or (7,),
            max_tokens=max_tokens,
            n=n,
            salt=salt,
            ignore_eos=True,
        )
        self.core.add_request(request)
        self.requests[request.request_id] = request
        self.outputs[request.request_id] = [[] for _ in range(n)]

    @rule(count=st.integers(1, 20))
    def step(self, count: int) -> None:
        for _ in range(count):
            if not self.core.has_work:
                return
            for delta in self.core.step():
                self.outputs[delta.request_id][delta.index] += delta.token_ids
            self.core.check_invariants()

    @precondition(lambda self: self.requests)
    @rule(data=st.data())
    def abort(self, data: st.DataObject) -> None:
        request_id = data.draw(st.sampled_from(sorted(self.requests)))
        self.core.abort(request_id)
        del self.requests[request_id]

    @invariant()
    def outputs_are_the_predicted_ones(self) -> None:
        for request_id, request in list(self.requests.items()):
            outputs = self.outputs[request_id]
            for index, output in enumerate(outputs):
                assert output == predicted_tokens(request, index)[: len(output)]
            if sum(map(len, outputs)) == request.sampling.n * request.sampling.max_tokens:
                del self.requests[request_id]
                self.histories = [
                    (*request.prompt_token_ids, *outputs[0]), *self.histories[:5]
                ]  # fmt: skip

    @invariant()
    def books_are_right(self) -> None:
        self.core.check_invariants()

    def teardown(self) -> None:
        if hasattr(self, "core"):
            self.step(10_000)
            assert self.core.stats.num_free_blocks == self.core.stats.num_blocks


TestChatMachine = ChatMachine.TestCase
TestChatMachine.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
