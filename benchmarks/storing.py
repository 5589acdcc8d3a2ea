"""What storing costs steps that go on: one engine, whose storing is held up and let go in turns.

    prompts are computed      their blocks are to be stored, and the store keeps the threads waiting
    the batch decodes         for a few steps the store has let go, for the next few it has not, …
    the run ends              all is stored

A virtual machine's speed changes within seconds, with its neighbours: medians of whole runs, a few
seconds apart, differ by more than a tenth when nothing is stored in either. So what is compared
are steps of the same sequences, a fraction of a second apart.

A pause of the threads that store goes on while they are held up, and with it what they may store
afterwards. So steps beside storing have more of it beside them than those of an engine that nobody
holds up.
"""

import time
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from statistics import mean, median

from benchmarks.prompts import PromptSource
from benchmarks.tiered_engine import TieredEngine
from rtp_serve.engine.request import SequenceDelta
from rtp_serve.errors import RtpServeError

STRETCH_STEPS = 8
"""Before the store is held up, or let go, the next time."""

_MAX_RUNS = 50


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
    """Steps in which the batch decoded, and nobody else ran, in seconds."""

    storing_s: tuple[float, ...]
    """While blocks were on their way to the arena or the disk, from a step's beginning to its end.
    """

    held_s: tuple[float, ...]
    """While the store was held up, but for a stretch's first, in which a piece may have ended."""

    num_host: int
    """Blocks that came to the arena meanwhile."""

    num_disk: int
    """Blocks that came to the disk meanwhile."""

    @property
    def has_stored(self) -> bool:
        """Whether there is a step that blocks came to the arena beside."""
        return self.num_host > 0 and len(self.storing_s) > 0

    def slowdown(self) -> float:
        """The median step beside storing over the median of those without, minus 1."""
        assert self.has_stored, "nothing was stored while the batch decoded"
        return median(self.storing_s) / median(self.held_s) - 1

    def mean_slowdown(self) -> float:
        """The same of the means: of all the time that storing takes, however it is spread."""
        assert self.has_stored, "nothing was stored while the batch decoded"
        return mean(self.storing_s) / mean(self.held_s) - 1


class DecodeBesideStoring:
    """Runs of one engine with tiers."""

    def __init__(self, engine: TieredEngine, sizes: DecodeSizes) -> None:
        self._engine = engine
        self._sizes = sizes

    def run(self, source: PromptSource, *, is_storing_first: bool) -> Run:
        """One, with new prompts.

        Raises RtpServeError if nothing is stored in any of many: on a busy machine the thread that
        stores may not get a core for as long as a small model's run, and such a run is of no use.
        """
        for _ in range(_MAX_RUNS):
            run = self._run(source, is_storing_first)
            if run.has_stored:
                return run
        raise RtpServeError(
            f"nothing was stored beside {self._sizes.steps} steps, {_MAX_RUNS} times"
        )

    def _run(self, source: PromptSource, is_storing_first: bool) -> Run:
        engine, sizes = self._engine, self._sizes
        batch = source.prompts(sizes.batch, sizes.prompt_tokens)
        with engine.held():
            for prompt in (*batch, *source.prompts(1, sizes.new_prompt_tokens)):
                engine.ask(prompt, 1)
            with closing(engine.engine.steps(batch, sizes.steps + 1)) as steps:
                # All of them at once: the device has their prompts, so none waits for the tiers.
                assert len(next(steps)) == sizes.batch, "a step without one of the batch"
                run = self._decode(steps, is_storing_first)
        engine.settle()
        return run

    def _decode(self, steps: Iterator[Sequence[SequenceDelta]], is_storing_first: bool) -> Run:
        engine = self._engine
        storing_s, held_s = [], []
        before = engine.num_stored()
        for number in range(self._sizes.steps):
            stretch, place = divmod(number, STRETCH_STEPS)
            is_storing = (stretch % 2 == 0) is is_storing_first
            if not place:
                engine.hold(not is_storing)
            was_pending = engine.is_storing()
            started_s = time.perf_counter()
            deltas = next(steps)
            seconds = time.perf_counter() - started_s
            assert len(deltas) == self._sizes.batch, "a step without one of the batch"
            if is_storing and was_pending and engine.is_storing():
                storing_s.append(seconds)
            if not is_storing and place:
                held_s.append(seconds)
        host, disk = (now - then for now, then in zip(engine.num_stored(), before, strict=True))
        return Run(tuple(storing_s), tuple(held_s), host, disk)
