"""What storing costs steps that go on: one engine, whose storing is held up or let go.

    prompts are computed      their blocks are to be stored, and the store keeps the thread waiting
    the batch decodes         in one run of a pair the store has let go, in the other it has not
    the run ends              all is stored

Both runs of a pair do the same work with the same weights in the same memory, one right after the
other. Two engines in a process would differ by where their memory lies, which is several
hundredths.
"""

import time
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from statistics import median

from benchmarks.prompts import PromptSource
from benchmarks.tiered_engine import TieredEngine
from rtp_serve.engine.request import SequenceDelta
from rtp_serve.errors import RtpServeError

_MAX_PAIRS = 50


@dataclass(frozen=True, slots=True)
class DecodeSizes:
    """A batch that decodes, and what is computed just before."""

    batch: int
    prompt_tokens: int
    """Of each of the batch."""

    new_prompt_tokens: int
    """Of one prompt more."""

    steps: int
    """Of a run."""

    @property
    def num_tokens(self) -> int:
        """Of a run, all sequences together."""
        return self.batch * (self.prompt_tokens + self.steps + 1) + self.new_prompt_tokens


@dataclass(frozen=True, slots=True)
class Run:
    """Steps in which the batch decoded, and nobody else ran."""

    seconds: tuple[float, ...]
    """Of each."""

    is_storing: tuple[bool, ...]
    """Whether blocks were on their way to the arena or the disk, from its beginning to its end."""

    num_host: int
    """Blocks that came to the arena meanwhile."""

    num_disk: int
    """Blocks that came to the disk meanwhile."""

    @property
    def has_stored(self) -> bool:
        """Whether there is a step that blocks came to the arena beside."""
        return self.num_host > 0 and any(self.is_storing)


@dataclass(frozen=True, slots=True)
class Pair:
    """The same work twice."""

    storing: Run
    held: Run

    def slowdown(self) -> float:
        """The median step beside storing over the median of the same steps without, minus 1."""
        assert self.storing.has_stored, "nothing was stored while the batch decoded"
        num_held = self.held.num_host + self.held.num_disk
        assert num_held == 0, f"{num_held} blocks were stored that were to be held up"
        counted = [
            pair
            for *pair, counts in zip(
                self.storing.seconds, self.held.seconds, self.storing.is_storing, strict=True
            )
            if counts
        ]
        return median(ours for ours, _ in counted) / median(held for _, held in counted) - 1


class DecodeBesideStoring:
    """Runs of one engine with tiers."""

    def __init__(self, engine: TieredEngine, sizes: DecodeSizes) -> None:
        self._engine = engine
        self._sizes = sizes

    def pair(self, source: PromptSource, *, is_storing_first: bool) -> Pair:
        """Two runs, with prompts of equal lengths.

        Raises RtpServeError if nothing is stored in any of many: on a busy machine the thread that
        stores may not get a core for as long as a small model's run, and such a pair is of no use.
        """
        for _ in range(_MAX_PAIRS):
            runs = [
                self._run(source, is_storing)
                for is_storing in (is_storing_first, not is_storing_first)
            ]
            storing, held = runs if is_storing_first else reversed(runs)
            if storing.has_stored:
                return Pair(storing, held)
        raise RtpServeError(
            f"nothing was stored beside {self._sizes.steps} steps, {_MAX_PAIRS} times"
        )

    def _run(self, source: PromptSource, is_storing: bool) -> Run:
        engine, sizes = self._engine, self._sizes
        batch = source.prompts(sizes.batch, sizes.prompt_tokens)
        with engine.held() as let_go:
            for prompt in (*batch, *source.prompts(1, sizes.new_prompt_tokens)):
                engine.ask(prompt, 1)
            with closing(engine.engine.steps(batch, sizes.steps + 1)) as steps:
                # All of them at once: the device has their prompts, so none waits for the tiers.
                assert len(next(steps)) == sizes.batch, "a step without one of the batch"
                if is_storing:
                    let_go()
                run = self._decode(steps)
        engine.settle()
        return run

    def _decode(self, steps: Iterator[Sequence[SequenceDelta]]) -> Run:
        engine = self._engine
        seconds, is_storing = [], []
        before = engine.num_stored()
        was_pending = engine.is_storing()
        for _ in range(self._sizes.steps):
            started_s = time.perf_counter()
            deltas = next(steps)
            seconds.append(time.perf_counter() - started_s)
            assert len(deltas) == self._sizes.batch, "a step without one of the batch"
            is_pending = engine.is_storing()
            is_storing.append(was_pending and is_pending)
            was_pending = is_pending
        host, disk = (now - then for now, then in zip(engine.num_stored(), before, strict=True))
        return Run(tuple(seconds), tuple(is_storing), host, disk)
