"""Generated traffic: requests that share beginnings, with a seed.

`assistants` makes single questions to one of many assistants, each with instructions of its own
that all of its prompts begin with; `conversations` makes chats whose turns begin with all before.
"""

import heapq
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import accumulate
from random import Random

from rtp_serve.kv_cache.block import BlockHash
from rtp_serve.simulation.requests import Trace, TracedRequest


@dataclass(frozen=True, slots=True)
class Assistants:
    """Questions and answers. The defaults are like a robot's for customers: prompts of 300 to 1,000
    tokens, 340 on average, answers of 7."""

    num_requests: int = 20_000
    requests_per_s: float = 500.0
    num_assistants: int = 1000
    popularity: float = 1.0
    """Exponent of Zipf's law: an assistant's share falls with its rank to this power."""
    shared_fraction: float = 0.3
    """Of prompts, those that begin with an assistant's instructions."""
    shared_tokens: int = 288
    """Of an assistant's instructions."""
    min_tokens: int = 300
    mean_tokens: int = 340
    max_tokens: int = 1000
    num_new_tokens: int = 7
    block_size: int = 16


def assistants(shape: Assistants, rng: Random) -> Trace:
    """Arrivals are a Poisson process."""
    shares = list(
        accumulate((rank + 1) ** -shape.popularity for rank in range(shape.num_assistants))
    )
    names = range(shape.num_assistants)
    now = 0.0
    requests = []
    for number in range(shape.num_requests):
        now += rng.expovariate(shape.requests_per_s)
        num_tokens = _length(shape, rng)
        is_shared = rng.random() < shape.shared_fraction
        assistant = rng.choices(names, cum_weights=shares)[0] if is_shared else -1
        num_shared = min(shape.shared_tokens, num_tokens) // shape.block_size if is_shared else 0
        hashes = tuple(
            _key("a", assistant, place) if place < num_shared else _key("q", number, place)
            for place in range(num_tokens // shape.block_size)
        )
        requests.append(TracedRequest(now, num_tokens, shape.num_new_tokens, hashes))
    return Trace("assistants", shape.block_size, tuple(requests))


def _length(shape: Assistants, rng: Random) -> int:
    """Least tokens and an exponential tail with the mean that is asked for."""
    beyond = rng.expovariate(1 / (shape.mean_tokens - shape.min_tokens))
    return int(min(shape.min_tokens + beyond, shape.max_tokens))


@dataclass(frozen=True, slots=True)
class Conversations:
    """Chats with one of a few system prompts. A turn begins with all turns before it."""

    num_conversations: int = 1000
    conversations_per_s: float = 2.0
    num_system_prompts: int = 8
    system_tokens: int = 512
    mean_turns: float = 4.0
    mean_question_tokens: float = 120.0
    mean_answer_tokens: float = 200.0
    mean_pause_s: float = 30.0
    """Between an arrival and the next of the same chat."""
    block_size: int = 16


def conversations(shape: Conversations, rng: Random) -> Trace:
    """Chats begin as a Poisson process; turns and lengths are geometric and exponential."""
    return Trace("conversations", shape.block_size, tuple(turns(shape, rng)))


def turns(shape: Conversations, rng: Random) -> Iterator[TracedRequest]:
    """The requests of `conversations`, made as they are taken: by arrival."""
    start = 0.0
    num_system = shape.system_tokens // shape.block_size
    systems = [
        [_key("s", system, place) for place in range(num_system)]
        for system in range(shape.num_system_prompts)
    ]
    to_come: list[tuple[float, int, _Turn]] = []
    num_turns = 0
    for number in range(shape.num_conversations):
        start += rng.expovariate(shape.conversations_per_s)
        while to_come and to_come[0][0] < start:  # no turn is before its chat begins
            yield _request(heapq.heappop(to_come)[2])
        for turn in _chat(shape, rng, number, start, systems[rng.randrange(len(systems))]):
            heapq.heappush(to_come, (turn[0], num_turns, turn))
            num_turns += 1
    while to_come:
        yield _request(heapq.heappop(to_come)[2])


_Turn = tuple[float, int, int, tuple[BlockHash, ...], int]
"""One request: its arrival, tokens of its prompt and of its answer, hashes that all turns of its
chat share, and how many of them are its own. Many are to come, and plain tuples are nothing to
Python's collector."""


def _request(turn: _Turn) -> TracedRequest:
    arrival_s, num_tokens, num_new_tokens, keys, num_blocks = turn
    return TracedRequest(arrival_s, num_tokens, num_new_tokens, keys[:num_blocks])


def _chat(
    shape: Conversations, rng: Random, number: int, start_s: float, system: list[BlockHash]
) -> list[_Turn]:
    """`system` has the blocks of its system prompt."""
    now, context = start_s, shape.system_tokens
    drawn: list[tuple[float, int, int]] = []
    while True:
        context += 1 + int(rng.expovariate(1 / shape.mean_question_tokens))
        answer = 1 + int(rng.expovariate(1 / shape.mean_answer_tokens))
        drawn.append((now, context, answer))
        if rng.random() < 1 / shape.mean_turns:
            break
        context += answer
        now += rng.expovariate(1 / shape.mean_pause_s)
    size = shape.block_size
    own = [_key("c", number, place) for place in range(len(system), context // size)]
    keys = (*system, *own)
    return [(*turn, keys, turn[1] // size) for turn in drawn]


def _key(kind: str, number: int, place: int) -> BlockHash:
    return BlockHash(f"{kind}{number}.{place}".encode())
