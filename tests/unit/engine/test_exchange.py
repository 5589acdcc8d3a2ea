"""Two engines, of which one computes prompts for the other.

Their worker's output depends on every token of its KV memory, so a block that is copied too early,
from the wrong place or over something else changes outputs.
"""

import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace

import pytest

from rtp_serve.engine.receiving import Reserved
from rtp_serve.engine.request import FinishReason, Request, SequenceDelta, first_token_request
from rtp_serve.errors import ModelChanged
from rtp_serve.observability.metrics import PREFIX, PrometheusSink
from tests.factories import (
    EOS,
    NUM_LAYERS,
    MemoryWorker,
    collect,
    make_core,
    make_prompt,
    make_request,
    predicted_tokens,
    run_to_end,
)


@dataclass
class Side:
    """An engine and its memory."""

    num_blocks: int = 64
    options: dict[str, int | str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.worker = MemoryWorker(self.num_blocks)
        self.core = make_core(num_blocks=self.num_blocks, worker=self.worker, **self.options)


class Told:
    """What a publication has said: which block is where, and in which layers."""

    max_groups = 8

    def __init__(self) -> None:
        self.block_ids: dict[int, int] = {}
        self.layers: dict[int, set[int]] = {}

    def ready(self, first: int, block_ids: Sequence[int], layers: range) -> None:
        for index, block_id in enumerate(block_ids, start=first):
            assert self.block_ids.setdefault(index, block_id) == block_id
            known = self.layers.setdefault(index, set())
            assert not known & set(layers), "a layer of a block is told twice"
            known.update(layers)

    @property
    def num_complete(self) -> int:
        """Blocks from the chain's beginning that are there in all layers."""
        return next(i for i in range(1000) if len(self.layers.get(i, ())) < NUM_LAYERS)


class Room:
    """What a reservation gave."""

    def __init__(self) -> None:
        self.blocks: Reserved | None = None

    def reserved(self, blocks: Reserved) -> None:
        assert self.blocks is None, "room is given once"
        self.blocks = blocks


def first_token(prefill: Side, request: Request, told: Told) -> int:
    """Compute the prompt there, and hold it."""
    prefill.core.publish(request.request_id, told)
    ((token_ids,),) = run_to_end(prefill.core, [first_token_request(request)]).values()
    (token_id,) = token_ids
    return token_id


def bring(prefill: Side, decode: Side, request: Request, told: Told, room: Reserved) -> None:
    """Copy what was told into what was reserved."""
    for index, block_id in enumerate(room.block_ids, start=room.num_present):
        if index < told.num_complete:
            decode.worker.block(block_id)[:] = prefill.worker.block(told.block_ids[index])
    decode.core.deposit(request.request_id, told.num_complete)


def handed_over(prefill: Side, decode: Side, request: Request) -> list[int]:
    """A request whose prompt is computed there, and the rest here."""
    room, told = Room(), Told()
    decode.core.receive(request, room)
    assert room.blocks is not None
    token_id = first_token(prefill, request, told)
    bring(prefill, decode, request, told, room.blocks)
    prefill.core.end_publication(request.request_id)
    rest = replace(request, emitted=((token_id,),))
    ((output,),) = run_to_end(decode.core, [rest]).values()
    for side in (prefill, decode):
        side.core.check_invariants()
        assert side.core.stats.num_free_blocks == side.core.stats.num_blocks
    return [token_id, *output]


@pytest.mark.parametrize("length", [1, 15, 16, 17, 32, 100, 200])
def test_a_prompt_is_computed_elsewhere(length: int):
    prefill, decode = Side(), Side()
    request = make_request(prompt=make_prompt(length), max_tokens=40, ignore_eos=True, seed=7)
    assert handed_over(prefill, decode, request) == predicted_tokens(request)
    # One token of the prompt's successor a step, and none of the prompt.
    assert decode.worker.steps[0].num_tokens == 1
    assert decode.core.counters.prefix_hits == length


def test_what_the_decode_side_has_is_not_asked_for():
    prefill, decode = Side(), Side()
    prompt = make_prompt(100)
    run_to_end(decode.core, [make_request("before", prompt[:64])])
    room = Room()
    decode.core.receive(make_request(prompt=prompt), room)
    assert room.blocks is not None
    assert (room.blocks.num_present, len(room.blocks.block_ids)) == (4, 3)
    decode.core.end_reception("r0")
    request = make_request(prompt=prompt, max_tokens=5)
    assert handed_over(prefill, decode, request) == predicted_tokens(request)


def test_what_the_prefill_side_has_cached_is_told_too():
    prefill, decode = Side(), Side()
    prompt = make_prompt(100)
    run_to_end(prefill.core, [make_request("before", prompt[:80])])
    request = make_request(prompt=prompt, max_tokens=5)
    assert handed_over(prefill, decode, request) == predicted_tokens(request)


@pytest.mark.parametrize("num_come", [0, 1, 3, 6])
def test_what_does_not_come_is_computed(num_come: int):
    prefill, decode = Side(), Side()
    request = make_request(prompt=make_prompt(100), max_tokens=20, ignore_eos=True)
    room, told = Room(), Told()
    decode.core.receive(request, room)
    assert room.blocks is not None
    token_id = first_token(prefill, request, told)
    for index in [i for i in told.layers if i >= num_come]:
        del told.layers[index]
    bring(prefill, decode, request, told, room.blocks)
    rest = replace(request, emitted=((token_id,),))
    ((output,),) = run_to_end(decode.core, [rest]).values()
    assert [token_id, *output] == predicted_tokens(request)
    assert decode.core.counters.prefix_hits == num_come * 16


def test_a_stream_whose_first_token_came_goes_on_with_weights_that_were_exchanged_meanwhile():
    """Between the reservation and its request no sequence says that the old ones are wanted."""
    prefill, decode = Side(), Side()
    request = make_request(prompt=make_prompt(100), max_tokens=20, ignore_eos=True, seed=3)
    room, told = Room(), Told()
    decode.core.receive(request, room)
    assert room.blocks is not None
    token_id = first_token(prefill, replace(request, fingerprint=room.blocks.content), told)
    decode.core.switch(decode.core.load())
    bring(prefill, decode, request, told, room.blocks)
    assert decode.worker.dropped == []
    rest = replace(request, emitted=((token_id,),), fingerprint=room.blocks.fingerprint)
    ((output,),) = run_to_end(decode.core, [rest]).values()
    assert [token_id, *output] == predicted_tokens(request, version=0)
    assert decode.core.counters.prefix_hits == 100
    assert decode.worker.dropped == [0]


def test_weights_that_nobody_comes_for_are_dropped():
    decode = Side()
    decode.core.receive(make_request(prompt=make_prompt(100)), Room())
    decode.core.switch(decode.core.load())
    assert decode.core.num_old_versions == 1
    decode.core.end_reception("r0")
    assert decode.core.num_old_versions == 0
    assert decode.worker.dropped == [0]


def test_a_prompt_for_other_weights_is_refused_and_one_for_these_is_not():
    """By their content, as of an engine of other ranks."""
    prefill = Side()
    request = first_token_request(make_request(prompt=make_prompt(40)))
    request = replace(request, fingerprint="content_0")
    prefill.core.switch(prefill.core.load())
    with pytest.raises(ModelChanged, match="content_0"):
        prefill.core.add_request(request)
    ((output,),) = run_to_end(prefill.core, [replace(request, fingerprint="content_1")]).values()
    assert output == predicted_tokens(request, count=1, version=1)


def test_a_lost_peer_costs_the_prompt_and_nothing_else():
    decode = Side()
    request = make_request(prompt=make_prompt(100), max_tokens=20)
    decode.core.receive(request, Room())
    ((output,),) = run_to_end(decode.core, [request]).values()
    assert output == predicted_tokens(request)
    assert decode.core.stats.num_free_blocks == decode.core.stats.num_blocks


def test_layers_are_told_group_by_group_and_chunks_as_they_come():
    prefill = Side(options={"max_num_batched_tokens": 512})
    told = Told()
    groups: list[range] = []

    class Listening(Told):
        def ready(self, first: int, block_ids: Sequence[int], layers: range) -> None:
            groups.append(layers)
            told.ready(first, block_ids, layers)

    prefill.core.publish("r0", Listening())
    prefill.core.add_request(first_token_request(make_request(prompt=make_prompt(300))))
    prefill.core.step()
    # 300 tokens are worth 4 groups of 2 layers; this worker tells of none before the end.
    assert prefill.worker.steps[0].layers_per_report == 2
    assert groups == [range(NUM_LAYERS)]
    assert told.num_complete == 19


def test_short_prompts_are_told_at_once():
    prefill = Side()
    prefill.core.publish("r0", Told())
    prefill.core.add_request(make_request(prompt=make_prompt(20)))
    prefill.core.step()
    prefill.core.step()
    assert [step.layers_per_report for step in prefill.worker.steps] == [NUM_LAYERS, 0]


def test_blocks_are_held_until_the_publication_ends():
    prefill = Side(num_blocks=9)
    told = Told()
    request = make_request(prompt=make_prompt(100), max_tokens=9)
    first_token(prefill, request, told)
    assert prefill.core.stats.num_free_blocks == 1
    # The next one finds no room, and nobody spins.
    prefill.core.add_request(make_request("r1", make_prompt(40, seed=1)))
    prefill.core.step()
    assert not prefill.core.has_work
    prefill.core.end_publication("r0")
    assert prefill.core.has_work
    assert run_to_end(prefill.core) == {}
    assert prefill.core.stats.num_free_blocks == prefill.core.stats.num_blocks


def test_room_is_given_in_order_and_after_those_who_wait_here():
    decode = Side(num_blocks=9, options={"max_num_seqs": 1})
    core = decode.core
    rooms = [Room() for _ in range(3)]
    core.receive(make_request("a", make_prompt(64)), rooms[0])
    core.receive(make_request("b", make_prompt(96, seed=1)), rooms[1])
    core.receive(make_request("c", make_prompt(16, seed=2)), rooms[2])
    assert [room.blocks is not None for room in rooms] == [True, False, False]
    core.end_reception("a")
    assert [room.blocks is not None for room in rooms] == [True, True, True]
    core.end_reception("b")
    core.end_reception("c")
    assert core.stats.num_free_blocks == core.stats.num_blocks


def test_what_is_held_shows_until_it_is_given_back():
    sink = PrometheusSink()
    core = make_core(num_blocks=11, sink=sink)
    core.receive(make_request("a", make_prompt(64)), Room())
    run_to_end(core, [make_request("b", make_prompt(20, seed=1))])
    assert "kv_cache_usage_ratio 0.4" in sink.render()
    core.end_reception("a")
    assert "kv_cache_usage_ratio 0.0" in sink.render()


def test_who_gives_up_asking_is_forgotten():
    decode = Side(num_blocks=9)
    rooms = [Room(), Room()]
    decode.core.receive(make_request("a", make_prompt(100)), rooms[0])
    decode.core.receive(make_request("b", make_prompt(100, seed=1)), rooms[1])
    decode.core.end_reception("b")
    decode.core.end_reception("a")
    assert rooms[1].blocks is None
    decode.core.check_invariants()


def test_a_stopping_first_token_is_the_end():
    prompt = next(
        prompt
        for prompt in (make_prompt(20, seed) for seed in range(10_000))
        if predicted_tokens(make_request(prompt=prompt), count=1) == [EOS]
    )
    prefill = Side()
    request = make_request(prompt=prompt)
    prefill.core.add_request(first_token_request(request))
    (delta,) = prefill.core.step()
    assert (delta.token_ids, delta.finish_reason) == ((EOS,), FinishReason.STOP)


# With the last three, those that held blocks and those that lacked some once waited for each other.
@pytest.mark.parametrize("policy", ["fcfs", "priority"])
@pytest.mark.parametrize("seed", [*range(6), 104, 106, 183])
def test_many_prompts_move_while_both_sides_are_short_of_blocks(seed: int, policy: str):
    rng = random.Random(seed)
    prefill = Side(num_blocks=40, options={"max_num_batched_tokens": 48})
    decode = Side(num_blocks=40, options={"policy": policy})
    shared = make_prompt(48, seed)
    requests = [
        make_request(
            f"r{i}",
            (*shared[: rng.choice((0, 20, 48))], *make_prompt(rng.randint(1, 120), seed * 100 + i)),
            max_tokens=rng.randint(2, 40),
            ignore_eos=True,
            seed=i,
        )
        for i in range(20)
    ]
    outputs = {request.request_id: [[]] for request in requests}
    moves = [_Move(prefill, decode, request) for request in requests]
    while prefill.core.has_work or decode.core.has_work or any(not m.is_over for m in moves):
        for move in rng.sample(moves, len(moves)):
            move.go_on(rng, outputs)
        for side in (prefill, decode):
            if side.core.has_work:
                collect(outputs, _firsts(moves, side, side.core.step()))
            side.core.check_invariants()
    for request in requests:
        assert outputs[request.request_id] == [predicted_tokens(request)]
    for side in (prefill, decode):
        assert side.core.stats.num_free_blocks == side.core.stats.num_blocks


class _Move:
    """One request's way, a little at a time, that may be given up at any time."""

    def __init__(self, prefill: Side, decode: Side, request: Request) -> None:
        self.prefill, self.decode, self.request = prefill, decode, request
        self.told, self.room = Told(), Room()
        self.first: int | None = None
        self.stage = 0

    @property
    def is_over(self) -> bool:
        return self.stage == 3

    def go_on(self, rng: random.Random, outputs: dict[str, list[list[int]]]) -> None:
        request_id = self.request.request_id
        if self.stage == 0:
            self.decode.core.receive(self.request, self.room)
            self.stage = 1
        elif self.stage == 1 and rng.random() < 0.05:
            self._decode_here(())
        elif self.stage == 1 and self.room.blocks is not None:
            self.prefill.core.publish(request_id, self.told)
            self.prefill.core.add_request(first_token_request(self.request))
            self.stage = 2
        elif self.stage == 2 and rng.random() < 0.05:
            self.prefill.core.abort(request_id)
            self._decode_here(() if self.first is None else (self.first,))
        elif self.stage == 2 and self.first is not None:
            assert self.room.blocks is not None
            bring(self.prefill, self.decode, self.request, self.told, self.room.blocks)
            self._decode_here((self.first,))

    def _decode_here(self, emitted: tuple[int, ...]) -> None:
        self.prefill.core.end_publication(self.request.request_id)
        rest = replace(self.request, emitted=(emitted,)) if emitted else self.request
        self.decode.core.add_request(rest)
        self.stage = 3


def _firsts(
    moves: list[_Move], side: Side, deltas: Iterable[SequenceDelta]
) -> Iterator[SequenceDelta]:
    """Of the prefill side's, only the first token counts, unless it was given up."""
    for delta in deltas:
        (move,) = [each for each in moves if each.request.request_id == delta.request_id]
        if side is move.prefill:
            assert move.stage == 2
            (move.first,) = delta.token_ids
        yield delta


def test_figures_tell_of_blocks_that_are_held_for_others():
    sink = PrometheusSink()
    core = make_core(num_blocks=64, worker=MemoryWorker(64), sink=sink)

    def usage() -> float:
        name = f"{PREFIX}kv_cache_usage_ratio"
        (line,) = (line for line in sink.render().splitlines() if line.startswith(name))
        return float(line.rsplit(" ", 1)[1])

    request = make_request(prompt=make_prompt(100))
    core.publish(request.request_id, Told())
    run_to_end(core, [first_token_request(request)])
    assert usage() > 0
    core.end_publication(request.request_id)
    assert usage() == 0
    core.receive(request, Room())
    assert usage() > 0
    core.end_reception(request.request_id)
    assert usage() == 0
