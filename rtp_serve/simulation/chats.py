"""Generated traffic: requests that share beginnings, with a seed.

`assistants` makes single questions to one of many assistants, each with instructions of its own
that all of its prompts begin with; `conversations` makes chats whose turns begin with all before.
"""

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
    requests: list[TracedRequest] = []
    start = 0.0
    num_system = shape.system_tokens // shape.block_size
    systems = [
        [_key("s", system, place) for place in range(num_system)]
        for system in range(shape.num_system_prompts)
    ]
    for number in range(shape.num_conversations):
        start += rng.expovariate(shape.conversations_per_s)
        now, context = start, shape.system_tokens
        system = rng.randrange(shape.num_system_prompts)
        keys = list(systems[system])
        while True:
            context += 1 + int(rng.expovariate(1 / shape.mean_question_tokens))
            answer = 1 + int(rng.expovariate(1 / shape.mean_answer_tokens))
            places = range(len(keys), context // shape.block_size)
            keys += (_key("c", number, place) for place in places)
            requests.append(TracedRequest(now, context, answer, tuple(keys)))
            if rng.random() < 1 / shape.mean_turns:
                break
            context += answer
            now += rng.expovariate(1 / shape.mean_pause_s)
    requests.sort(key=lambda each: each.arrival_s)
    return Trace("conversations", shape.block_size, tuple(requests))


def _key(kind: str, number: int, place: int) -> BlockHash:
    return BlockHash(f"{kind}{number}.{place}".encode())
