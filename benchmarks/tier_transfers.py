"""What restoring a prefix takes beside computing it, and what storing costs steps that go on."""

import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, closing
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from benchmarks.prompts import PromptSource
from benchmarks.tiered_engine import Answer, TieredEngine, drop_page_cache
from rtp_serve.errors import RtpServeError
from rtp_serve.kv_store.client import StoreStats

_OUTPUT = 1

_STEPS_TO_ENTER = 6
"""Of a new prompt: that of its own, and those while the tiers are asked for it."""


class Restores:
    """Prompts so long that the device has no room for one when the others were asked since."""

    def __init__(
        self,
        prompts: Sequence[tuple[int, ...]],
        open_tiered: Callable[[], AbstractContextManager[TieredEngine]],
        plain: TieredEngine,
        disk: Path,
    ) -> None:
        """`open_tiered` opens an engine with what is in `disk` and an empty arena. A prompt is the
        prefix and one token more, which is always computed."""
        self._prompts = prompts
        self._open_tiered = open_tiered
        self._plain = plain
        self._disk = disk

    def fill(self) -> None:
        """Bring the prompts to the disk, once."""
        with self._open_tiered() as engine:
            self._ask(engine)
            self._ask(engine)  # a step, as a restore, stores at most half the device's blocks

    def repetition(self) -> dict[str, float]:
        """Medians over the prompts."""
        drop_page_cache(self._disk)
        cold, plain_again = self._ask_all(self._plain, Answer.is_cold)
        with self._open_tiered() as engine:
            disk, again = self._ask_all(engine, Answer.is_from_disk)
            self._ask(engine)  # so that the arena has all
            host, again_host = self._ask_all(engine, Answer.is_from_host)
        recompute = [a - b for a, b in zip(cold, plain_again, strict=True)]
        from_disk = [a - b for a, b in zip(disk, again, strict=True)]
        from_host = [a - b for a, b in zip(host, again_host, strict=True)]
        return {
            "host_restore_over_recompute": _ratio(from_host, recompute),
            "disk_restore_over_recompute": _ratio(from_disk, recompute),
            "recompute_ms": median(recompute) * 1e3,
            "host_restore_ms": median(from_host) * 1e3,
            "disk_restore_ms": median(from_disk) * 1e3,
            "device_hit_ttft_ms": median([*plain_again, *again, *again_host]) * 1e3,
        }

    def _ask(self, engine: TieredEngine) -> None:
        for prompt in self._prompts:
            engine.ask(prompt, _OUTPUT)
            engine.settle()

    def _ask_all(
        self, engine: TieredEngine, is_expected: Callable[[Answer], bool]
    ) -> tuple[list[float], list[float]]:
        """TTFTs of each prompt, and of the same right after it, when the device has all of it."""
        first: list[float] = []
        again: list[float] = []
        for prompt in self._prompts:
            for ttfts, expected in ((first, is_expected), (again, Answer.is_from_device)):
                answer = engine.ask(prompt, _OUTPUT)
                engine.settle()
                if not expected(answer):
                    raise RtpServeError(
                        f"{expected.__name__} does not hold for a prompt of {len(prompt)} tokens: "
                        f"{answer.num_cached} cached, {answer.num_host} of the host, "
                        f"{answer.num_disk} of the disk"
                    )
                ttfts.append(answer.ttft_s)
        return first, again


def _ratio(restores: Sequence[float], recomputes: Sequence[float]) -> float:
    return median(a / b for a, b in zip(restores, recomputes, strict=True))


@dataclass(frozen=True, slots=True)
class DecodeSizes:
    """A batch that decodes, and prompts that come meanwhile."""

    batch: int
    prompt_tokens: int
    new_prompts: int
    new_prompt_tokens: int
    steps_between: int
    spare_steps: int
    """For prompts that wait longer, all together: on a busy machine the tiers answer late."""


@dataclass(frozen=True, slots=True)
class Step:
    """A step in which only the batch decoded."""

    seconds: float
    is_storing: bool
    """Blocks were on their way meanwhile."""


def decode_beside_storing(
    engine: TieredEngine, sizes: DecodeSizes, source: PromptSource
) -> list[Step]:
    """One run. With prompts from equal sources every engine computes the same steps."""
    batch = source.prompts(sizes.batch, sizes.prompt_tokens)
    num_tokens = sizes.new_prompts * (sizes.steps_between + _STEPS_TO_ENTER) + sizes.spare_steps
    found: list[Step] = []
    with closing(engine.engine.steps(batch, num_tokens)) as steps:
        next(filter(None, steps))
        for new in source.prompts(sizes.new_prompts, sizes.new_prompt_tokens):
            with closing(engine.engine.steps([new], 1)) as newcomer:
                next(deltas for deltas in newcomer if len(deltas) > sizes.batch)
            for _ in range(sizes.steps_between):
                before = engine.stats()
                started_s = time.perf_counter()
                next(steps)
                seconds = time.perf_counter() - started_s
                found.append(Step(seconds, is_storing(before, engine.stats())))
        for _ in steps:
            pass
    engine.settle()
    return found


def is_storing(before: StoreStats | None, after: StoreStats | None) -> bool:
    """Whether blocks came to the arena or to the disk between the two, or waited for the disk."""
    if before is None or after is None:
        return False
    moved = [
        (stats.host.counts.stored, stats.disk.counts.stored if stats.disk else 0)
        for stats in (before, after)
    ]
    return moved[0] != moved[1] or before.num_to_spill > 0


def slowdown(plain: Sequence[Step], tiered: Sequence[Step]) -> float:
    """Of the median step while blocks are stored, over the same steps without tiers, minus 1."""
    pairs = [
        (ours.seconds, theirs.seconds)
        for ours, theirs in zip(tiered, plain, strict=True)
        if ours.is_storing
    ]
    if not pairs:
        raise RtpServeError("nothing was stored while the batch decoded")
    return median(ours for ours, _ in pairs) / median(theirs for _, theirs in pairs) - 1
