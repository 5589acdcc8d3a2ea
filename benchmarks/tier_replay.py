"""A workload on two engines: a few turns on one, the same turns on the other, and so on.

    plain  |turns|       |turns|turns|       |turns| …
    tiered       |turns|             |turns|

What the tiered engine does beside its steps falls on its own turns: it settles before the plain one
has the machine.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.block_traces import BlockTrace, trace_of
from benchmarks.conversations import InfiniteCache, Transcript, Turn, Workload
from benchmarks.samples import percentile
from benchmarks.tiered_engine import Answer, TieredEngine
from rtp_serve.errors import RtpServeError

_TURNS = 8
_PERCENT = 95


@dataclass(frozen=True, slots=True)
class Answered:
    """One turn on both engines."""

    is_first: bool
    """Of its thread."""

    num_infinite: int
    """Tokens of whole blocks that a cache without limits would have had."""

    plain: Answer
    tiered: Answer


@dataclass(frozen=True, slots=True)
class Replayed:
    """All turns."""

    turns: tuple[Answered, ...]
    num_blocks: int
    """Different ones."""

    trace: BlockTrace
    """The prompts' whole blocks, without those that the last token is in."""

    @property
    def ttft_p95_ratio(self) -> float:
        """Of turns that are not their thread's first, tiered / plain."""
        return percentile(self._ttfts_s("tiered"), _PERCENT) / percentile(
            self._ttfts_s("plain"), _PERCENT
        )

    @property
    def hit_fraction(self) -> float:
        """Tokens of whole blocks that the tiered engine did not compute / those that a cache
        without limits would have had."""
        return sum(turn.tiered.num_whole for turn in self.turns) / self._num_infinite

    def figures(self, prefix: str = "") -> dict[str, float]:
        """What explains the two, too."""
        found = {
            "hit_fraction_device_only": self._share("plain", "num_whole"),
            "hit_fraction_from_host": self._share("tiered", "num_host"),
            "hit_fraction_from_disk": self._share("tiered", "num_disk"),
        }
        for engine in ("plain", "tiered"):
            for percent in (50, _PERCENT):
                ttft_s = percentile(self._ttfts_s(engine), percent)
                found[f"{engine}_ttft_p{percent}_ms"] = ttft_s * 1e3
        return {prefix + name: value for name, value in found.items()}

    def _ttfts_s(self, engine: str) -> list[float]:
        return [getattr(turn, engine).ttft_s for turn in self.turns if not turn.is_first]

    @property
    def _num_infinite(self) -> int:
        return sum(turn.num_infinite for turn in self.turns)

    def _share(self, engine: str, count: str) -> float:
        return (
            sum(getattr(getattr(turn, engine), count) for turn in self.turns) / self._num_infinite
        )


class Replay:
    """One workload, from its beginning."""

    def __init__(self, workload: Workload, plain: TieredEngine, tiered: TieredEngine) -> None:
        self._workload = workload
        self._plain = _Side(plain, workload)
        self._tiered = _Side(tiered, workload)

    def run(self) -> Replayed:
        """Raises RtpServeError if the engines do not give the same tokens."""
        answers: list[tuple[Answer, Answer]] = []
        for number, first in enumerate(range(0, len(self._workload.turns), _TURNS)):
            turns = self._workload.turns[first : first + _TURNS]
            sides = (self._plain, self._tiered) if number % 2 else (self._tiered, self._plain)
            for side in sides:
                side.run(turns)
            pairs = zip(self._plain.answers[first:], self._tiered.answers[first:], strict=True)
            answers += pairs
            check_equal(answers[first:], first)
        return self._replayed(answers)

    def _replayed(self, answers: Sequence[tuple[Answer, Answer]]) -> Replayed:
        transcript, infinite = Transcript(self._workload), InfiniteCache()
        threads: set[int] = set()
        turns, chains = [], []
        for turn, (plain, tiered) in zip(self._workload.turns, answers, strict=True):
            prompt = transcript.prompt(turn)
            num_infinite = infinite.request(prompt, plain.token_ids)
            chains.append(infinite.chain(prompt[:-1]))
            is_first = turn.thread not in threads
            turns.append(Answered(is_first, num_infinite, plain, tiered))
            threads.add(turn.thread)
            transcript.add(turn, plain.token_ids)
        return Replayed(tuple(turns), infinite.num_blocks, trace_of(iter(chains)))


class _Side:
    """One of the engines, and what it was told and has told."""

    def __init__(self, engine: TieredEngine, workload: Workload) -> None:
        self._engine = engine
        self._transcript = Transcript(workload)
        self._num_tokens = workload.answer_tokens
        self.answers: list[Answer] = []

    def run(self, turns: Sequence[Turn]) -> None:
        for turn in turns:
            answer = self._engine.ask(self._transcript.prompt(turn), self._num_tokens)
            self._transcript.add(turn, answer.token_ids)
            self.answers.append(answer)
        self._engine.settle()


def check_equal(answers: Sequence[tuple[Answer, Answer]], first: int) -> None:
    for number, (plain, tiered) in enumerate(answers, first):
        if plain.token_ids != tiered.token_ids:
            raise RtpServeError(
                f"turn {number} ends with {list(tiered.token_ids)} with tiers "
                f"({tiered.num_host} tokens from the host, {tiered.num_disk} from the disk), and "
                f"with {list(plain.token_ids)} without"
            )
