"""Requests that share prefixes, drawn once and the same for every engine, and what a cache without
limits would find of them. Pure arithmetic.

    chats       a thread's next prompt is all that was said in it, answers included, and a message
    documents   a prompt is one of some long documents and a question
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from benchmarks.prompts import PromptSource

BLOCK_SIZE = 16
"""Tokens."""


@dataclass(frozen=True, slots=True)
class Turn:
    """One request."""

    thread: int
    message: tuple[int, ...]
    """What its prompt ends with; before it is the thread's history."""


@dataclass(frozen=True, slots=True)
class Workload:
    """Requests in the order in which they come, one at a time."""

    turns: tuple[Turn, ...]
    answer_tokens: int
    documents: tuple[tuple[int, ...], ...] = ()
    """Histories of threads from 0 on that neither message nor answer change. Without them all
    threads begin empty, and grow."""


@dataclass(frozen=True, slots=True)
class ChatSizes:
    """Ranges are of whole numbers, both ends included, all equally likely."""

    num_turns: int
    new_share: float
    """Of turns, those that begin a thread, from chance."""

    opening_tokens: tuple[int, int]
    message_tokens: tuple[int, int]
    answer_tokens: int
    max_tokens: int
    """A thread as long as that has ended."""


def draw_chats(sizes: ChatSizes, vocab_size: int, seed: int) -> Workload:
    """Threads begin all along. Who speaks next, if no new one, depends on when they last did: the
    k-th latest of n threads with the probability (1 / k) / (1 + 1/2 + … + 1/n).

    So a thread's pauses have a long tail, and most threads fall silent for good. There is no
    parameter to it.
    """
    random, source = np.random.default_rng(seed), PromptSource(vocab_size, seed)
    lengths: dict[int, int] = {}
    latest_first: list[int] = []
    turns = []
    for _ in range(sizes.num_turns):
        if not latest_first or random.random() < sizes.new_share:
            thread, low_high = len(lengths), sizes.opening_tokens
        else:
            thread, low_high = (
                latest_first.pop(_rank(len(latest_first), random)),
                sizes.message_tokens,
            )
        message = source.prompt(int(random.integers(*low_high, endpoint=True)))
        turns.append(Turn(thread, message))
        lengths[thread] = lengths.get(thread, 0) + len(message) + sizes.answer_tokens
        if lengths[thread] < sizes.max_tokens:
            latest_first.insert(0, thread)
    return Workload(tuple(turns), sizes.answer_tokens)


@dataclass(frozen=True, slots=True)
class DocumentSizes:
    """Tokens, and how many."""

    num_documents: int
    document_tokens: int
    num_questions: int
    question_tokens: int
    answer_tokens: int


def draw_documents(sizes: DocumentSizes, vocab_size: int, seed: int) -> Workload:
    """Each question is on any of the documents with the same probability."""
    random, source = np.random.default_rng(seed), PromptSource(vocab_size, seed)
    documents = source.prompts(sizes.num_documents, sizes.document_tokens)
    questions = source.prompts(sizes.num_questions, sizes.question_tokens)
    asked = random.integers(sizes.num_documents, size=sizes.num_questions).tolist()
    turns = [Turn(thread, question) for thread, question in zip(asked, questions, strict=True)]
    return Workload(tuple(turns), sizes.answer_tokens, tuple(documents))


class Transcript:
    """What was said in each thread, on one engine."""

    def __init__(self, workload: Workload) -> None:
        self._grows = not workload.documents
        self._histories = dict(enumerate(workload.documents))

    def prompt(self, turn: Turn) -> tuple[int, ...]:
        return self._histories.get(turn.thread, ()) + turn.message

    def add(self, turn: Turn, answer: Sequence[int]) -> None:
        """The turn was answered."""
        if self._grows:
            self._histories[turn.thread] = (*self.prompt(turn), *answer)


class InfiniteCache:
    """What a prefix cache without limits has of a request, in whole blocks."""

    def __init__(self) -> None:
        self._numbers: dict[tuple[int, tuple[int, ...]], int] = {}

    @property
    def num_blocks(self) -> int:
        """Different ones that were ever computed."""
        return len(self._numbers)

    def request(self, prompt: Sequence[int], answer: Sequence[int]) -> int:
        """Tokens that were there of the prompt, of which one is always computed; then everything
        but the answer's last token, which no step takes in, is there."""
        num_before = self.num_blocks
        chain = self.chain(prompt[:-1])
        self.chain((*prompt, *answer[:-1]))
        return sum(number < num_before for number in chain) * BLOCK_SIZE

    def chain(self, tokens: Sequence[int]) -> list[int]:
        """Of the whole blocks, each one's number: from 0 on, in the order in which they came."""
        chain: list[int] = []
        for start in range(0, len(tokens) - BLOCK_SIZE + 1, BLOCK_SIZE):
            block = chain[-1] if chain else -1, tuple(tokens[start : start + BLOCK_SIZE])
            chain.append(self._numbers.setdefault(block, len(self._numbers)))
        return chain


def _rank(num_threads: int, random: np.random.Generator) -> int:
    weights = 1 / np.arange(1, num_threads + 1)
    return int(random.choice(num_threads, p=weights / weights.sum()))
