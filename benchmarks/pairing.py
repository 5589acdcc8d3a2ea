"""Blocks of steps, each between two measurements of what the machine can do at that moment.

A virtual machine's memory rate changes by a factor of three within seconds, with its neighbours.
What a step made of the machine is known only against a measurement taken right beside it:

    probe | step step step step | probe | step step step step | probe | …
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from statistics import fmean, median


@dataclass(frozen=True, slots=True)
class Block:
    """Steps one after the other, and the ceiling beside them."""

    num_steps: int
    seconds: float
    """Of the steps alone."""

    ceiling: float
    """The mean of the probes before and after: units a second, in whatever the probe counts."""


@dataclass(frozen=True, slots=True)
class PairedRun:
    """The blocks of one run of the engine."""

    blocks: tuple[Block, ...]

    @property
    def seconds(self) -> float:
        """Of all steps, probes left out."""
        return sum(block.seconds for block in self.blocks)

    @property
    def step_s(self) -> float:
        """The mean step."""
        return self.seconds / sum(block.num_steps for block in self.blocks)

    @property
    def ceiling(self) -> float:
        """The rate at which the machine would have gone through the steps' time."""
        return sum(block.ceiling * block.seconds for block in self.blocks) / self.seconds

    def fraction(self, units_per_step: float) -> float:
        """What a step does, over what the ceiling does in its time: the median block."""
        return median(
            units_per_step * block.num_steps / block.seconds / block.ceiling
            for block in self.blocks
        )


def alternate(
    steps: Iterator[object],
    probe: Callable[[], float],
    block_steps: int,
    clock_s: Callable[[], float],
) -> PairedRun:
    """Take `steps` to their end, `block_steps` at a time, and `probe` around each block."""
    blocks: list[Block] = []
    before = probe()
    while True:
        started_s = clock_s()
        num_steps = sum(1 for _ in islice(steps, block_steps))
        seconds = clock_s() - started_s
        if not num_steps:
            return PairedRun(tuple(blocks))
        after = probe()
        blocks.append(Block(num_steps, seconds, fmean((before, after))))
        before = after
