"""What restoring a prefix takes beside computing it."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from statistics import median

from benchmarks.tiered_engine import Answer, TieredEngine, drop_page_cache
from rtp_serve.errors import RtpServeError

_OUTPUT = 1


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
