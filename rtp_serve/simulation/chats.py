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
            yield heapq.heappop(to_come)[2].request()
        for turn in _chat(shape, rng, number, start, list(systems[rng.randrange(len(systems))])):
            heapq.heappush(to_come, (turn.arrival_s, num_turns, turn))
            num_turns += 1
    while to_come:
        yield heapq.heappop(to_come)[2].request()


@dataclass(frozen=True, slots=True)
class _Turn:
    """One request. Turns of a chat share `keys`, so that those to come take little memory."""

    arrival_s: float
    num_tokens: int
    num_new_tokens: int
    keys: list[BlockHash]
    num_blocks: int

    def request(self) -> TracedRequest:
        hashes = tuple(self.keys[: self.num_blocks])
        return TracedRequest(self.arrival_s, self.num_tokens, self.num_new_tokens, hashes)


def _chat(
    shape: Conversations, rng: Random, number: int, start_s: float, keys: list[BlockHash]
) -> Iterator[_Turn]:
    """`keys` has the blocks of its system prompt, and gets those of all turns."""
    now, context = start_s, shape.system_tokens
    while True:
        context += 1 + int(rng.expovariate(1 / shape.mean_question_tokens))
        answer = 1 + int(rng.expovariate(1 / shape.mean_answer_tokens))
        places = range(len(keys), context // shape.block_size)
        keys += (_key("c", number, place) for place in places)
        yield _Turn(now, context, answer, keys, len(keys))
        if rng.random() < 1 / shape.mean_turns:
            return
        context += answer
        now += rng.expovariate(1 / shape.mean_pause_s)


def _key(kind: str, number: int, place: int) -> BlockHash:
    return BlockHash(f"{kind}{number}.{place}".encode())
