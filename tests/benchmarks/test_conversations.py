from collections import Counter

import pytest

from benchmarks.conversations import (
    ChatSizes,
    DocumentSizes,
    InfiniteCache,
    Transcript,
    Turn,
    Workload,
    draw_chats,
    draw_documents,
)

SIZES = ChatSizes(
    num_turns=400,
    new_share=0.2,
    opening_tokens=(30, 50),
    message_tokens=(5, 9),
    answer_tokens=4,
    max_tokens=100,
)


def test_the_same_seed_draws_the_same_chats_and_another_one_others():
    assert draw_chats(SIZES, 500, 7) == draw_chats(SIZES, 500, 7)
    assert draw_chats(SIZES, 500, 7) != draw_chats(SIZES, 500, 8)


def test_messages_have_the_lengths_that_were_asked_for():
    turns = draw_chats(SIZES, 500, 1).turns
    seen: set[int] = set()
    lengths: tuple[set[int], set[int]] = (set(), set())
    for turn in turns:
        lengths[turn.thread in seen].add(len(turn.message))
        seen.add(turn.thread)
    openings, others = lengths
    assert (min(openings), max(openings)) == (30, 50)
    assert others == {5, 6, 7, 8, 9}
    assert 0.1 < len(seen) / len(turns) < 0.3


def test_a_thread_that_is_long_enough_says_nothing_more():
    workload = draw_chats(SIZES, 500, 2)
    transcript, lengths = Transcript(workload), []
    for turn in workload.turns:
        lengths.append(len(transcript.prompt(turn)) + SIZES.answer_tokens)
        transcript.add(turn, (1,) * SIZES.answer_tokens)
    assert 100 <= max(lengths) < 100 + 9 + SIZES.answer_tokens


def test_who_spoke_last_speaks_next_more_often_than_others():
    endless = ChatSizes(2000, 0.01, (1, 1), (1, 1), 1, 1 << 20)
    turns = draw_chats(endless, 500, 3).turns
    latest_first: list[int] = []
    ranks: Counter[int] = Counter()
    for turn in turns:
        if turn.thread in latest_first:
            ranks[latest_first.index(turn.thread)] += len(latest_first) >= 8
            latest_first.remove(turn.thread)
        latest_first.insert(0, turn.thread)
    assert ranks[0] / ranks[1] == pytest.approx(2, rel=0.25)
    assert ranks[0] / ranks[3] == pytest.approx(4, rel=0.3)


def test_a_chat_grows_by_messages_and_answers():
    transcript = Transcript(Workload((), 2))
    transcript.add(Turn(0, (1, 2)), (3, 4))
    assert transcript.prompt(Turn(0, (5,))) == (1, 2, 3, 4, 5)
    assert transcript.prompt(Turn(1, (5,))) == (5,)


def test_a_document_stays_as_it_is():
    sizes = DocumentSizes(3, 20, 50, 4, 2)
    workload = draw_documents(sizes, 500, 1)
    assert workload == draw_documents(sizes, 500, 1)
    assert {turn.thread for turn in workload.turns} == {0, 1, 2}
    transcript, turn = Transcript(workload), workload.turns[0]
    prompt = transcript.prompt(turn)
    assert prompt == workload.documents[turn.thread] + turn.message
    transcript.add(turn, (1, 2))
    assert transcript.prompt(turn) == prompt


def test_a_cache_without_limits_has_whole_blocks_of_the_longest_common_prefix():
    cache = InfiniteCache()
    tokens = tuple(range(100))
    assert cache.request(tokens[:40], (40, 41)) == 0
    assert cache.num_blocks == 2
    assert cache.request(tokens[:40], (40, 41)) == 32
    assert cache.request((*tokens[:31], 7, *tokens[32:40]), (0,)) == 16
    assert cache.request((7, *tokens[1:40]), (0,)) == 0


def test_a_token_of_the_prompt_is_always_computed():
    cache = InfiniteCache()
    prompt = tuple(range(32))
    cache.request(prompt, (1,))
    assert cache.request(prompt, (1,)) == 16
    assert cache.request((*prompt, 5), (1,)) == 32


def test_the_last_token_of_an_answer_was_never_taken_in():
    cache = InfiniteCache()
    prompt = tuple(range(30))
    cache.request(prompt, (1, 2))
    assert cache.request((*prompt, 1, 2, 3), (4,)) == 16
    assert cache.request((*prompt, 1, 2, 3), (4,)) == 32


def test_the_blocks_of_one_request_do_not_hit_each_other():
    cache = InfiniteCache()
    assert cache.request((1,) * 100, (1,)) == 0
    assert cache.num_blocks == 6


def test_blocks_are_numbered_as_they_come():
    cache = InfiniteCache()
    assert cache.chain((1,) * 47) == [0, 1]
    assert cache.chain((1,) * 16 + (2,) * 32) == [0, 2, 3]
