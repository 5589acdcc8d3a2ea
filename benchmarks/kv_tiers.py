"""What the tiers below the device's KV cache are worth, with an engine in this process.

    python -m benchmarks.kv_tiers [--traces DIR] [--part NAME] [--json]

ttft_p95_ratio               chats, turns after a thread's first: with tiers / device alone
hit_fraction_of_infinite     of them, prompt tokens not computed / those that a cache without limits
                             would have had, to whole blocks
documents_ttft_p95_ratio     questions on long documents, those after a document's first
host_restore_over_recompute  TTFT of a prefix in the arena / of one in no cache, both less the TTFT
                             of the same prompt when the device has it
disk_restore_over_recompute  the same from the disk, with nothing of it in the page cache
decode_slowdown_while_storing  median decode step of a batch while blocks of prompts that were just
                             computed, and its own, are stored, over that of the same sequences
                             while storing is held up, minus 1; see `storing`
duel_minus_best              with --traces, see `kv_eviction`

The host tier has the size of the device's cache, the disk tier four times that. Both engines have
the same requests, greedily, and must give the same tokens. `chats_working_set` and
`documents_working_set` are all blocks of the workload over the device's. How the workloads are
drawn is said in `conversations`; `chats_lru` and `chats_belady` are what a single cache of the disk
tier's size would have of the chats, of what one without limits has, by LRU and knowing the future.
"""

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from statistics import median
from typing import Annotated

import typer

from benchmarks.block_cache import best_hit_rate, hit_rate
from benchmarks.command import run
from benchmarks.conversations import (
    BLOCK_SIZE,
    ChatSizes,
    DocumentSizes,
    Workload,
    draw_chats,
    draw_documents,
)
from benchmarks.kv_eviction import duel_minus_best
from benchmarks.prompts import PromptSource
from benchmarks.quiet import quiet
from benchmarks.report import Report, say
from benchmarks.samples import short
from benchmarks.storing import DecodeBesideStoring, DecodeSizes
from benchmarks.tier_replay import Replay, Replayed
from benchmarks.tier_transfers import Restores
from benchmarks.tiered_engine import Shares, TieredEngine, device_only, tiered
from rtp_serve.config.engine import EngineConfig
from rtp_serve.config.model import read_model_config
from rtp_serve.errors import ConfigError
from rtp_serve.kv_store.eviction.registry import make_policy
from rtp_serve.loader.hub import resolve

FIGURES = (
    "ttft_p95_ratio",
    "hit_fraction_of_infinite",
    "documents_ttft_p95_ratio",
    "host_restore_over_recompute",
    "disk_restore_over_recompute",
    "decode_slowdown_while_storing",
)

_SHARES = Shares(host=1, disk=4)
_ROOMY = Shares(host=4, disk=8)
"""For single transfers: all that was stored is there."""

_NUM_PREFIXES = 3
"""Whose restores are measured; two of them are more than the device's cache."""

_PARTS = ("chats", "documents", "restores", "decode")

_RUNS = 6
"""That decode; half of them begin with steps beside storing."""


@dataclass(frozen=True, slots=True)
class Sizes:
    """What is asked for."""

    num_blocks: int
    """Of the device."""

    turns: int
    questions: int
    prefix_tokens: int
    batch: int
    decode_steps: int

    @property
    def device_tokens(self) -> int:
        """One block is the null block."""
        return (self.num_blocks - 1) * BLOCK_SIZE

    @property
    def chats(self) -> ChatSizes:
        """With 3,184 tokens on the device: 127 to 636 to begin with, then 31 to 96."""
        device = self.device_tokens
        return ChatSizes(
            num_turns=self.turns,
            new_share=1 / 6,
            opening_tokens=(device // 25, device // 5),
            message_tokens=(device // 100, device // 33),
            answer_tokens=8,
            max_tokens=device // 2,
        )

    @property
    def documents(self) -> DocumentSizes:
        """More than the device and the host hold, and less than the disk."""
        return DocumentSizes(
            num_documents=8,
            document_tokens=self.device_tokens // 3,
            num_questions=self.questions,
            question_tokens=32,
            answer_tokens=4,
        )

    @property
    def decode(self) -> DecodeSizes:
        return DecodeSizes(
            batch=self.batch,
            prompt_tokens=64,
            new_prompt_tokens=256,
            steps=self.decode_steps,
        )

    def check(self) -> None:
        """Raises ConfigError if a prefix would not leave the device for two others, or blocks of a
        batch that decodes could not all wait to be stored."""
        num_blocks = self.prefix_tokens // BLOCK_SIZE
        if not num_blocks + 1 < self.num_blocks <= 2 * num_blocks:
            raise ConfigError(
                f"--prefix-tokens {self.prefix_tokens}: one prefix and a block must fit into "
                f"--num-blocks {self.num_blocks}, and two must not"
            )
        if self.decode.num_tokens > self.device_tokens // 2:
            raise ConfigError(
                f"--batch {self.batch} and --decode-steps {self.decode_steps}: "
                f"{self.decode.num_tokens} tokens must fit into half of "
                f"--num-blocks {self.num_blocks}"
            )


class TierBenchmark:
    """One model, the engine without tiers, and a place for the disk tier of those with."""

    def __init__(
        self, config: EngineConfig, sizes: Sizes, plain: TieredEngine, parent: Path, seed: int
    ) -> None:
        self._config = config
        self._sizes = sizes
        self._plain = plain
        self._parent = parent
        self._vocab_size = read_model_config(resolve(config.model)).vocab_size
        self._seeds = count(seed)

    def chats(self) -> dict[str, float]:
        """One drawing."""
        seed = next(self._seeds)
        workload = draw_chats(self._sizes.chats, self._vocab_size, seed)
        replayed = self._replay(workload)
        trace, capacity = replayed.trace, _SHARES.disk * self._sizes.num_blocks
        unlimited = best_hit_rate(trace, len(trace.keys))
        lru = hit_rate(trace, make_policy("lru", capacity), capacity)
        return {
            "ttft_p95_ratio": replayed.ttft_p95_ratio,
            "hit_fraction_of_infinite": replayed.hit_fraction,
            "chats_working_set": replayed.num_blocks / self._sizes.num_blocks,
            "chats_lru": lru / unlimited,
            "chats_belady": best_hit_rate(trace, capacity) / unlimited,
            **replayed.figures("chats_"),
        }

    def documents(self) -> dict[str, float]:
        """One drawing."""
        seed = next(self._seeds)
        workload = draw_documents(self._sizes.documents, self._vocab_size, seed)
        replayed = self._replay(workload)
        return {
            "documents_ttft_p95_ratio": replayed.ttft_p95_ratio,
            "documents_hit_fraction": replayed.hit_fraction,
            "documents_working_set": replayed.num_blocks / self._sizes.num_blocks,
            **replayed.figures("documents_"),
        }

    @contextmanager
    def restores(self) -> Iterator[Restores]:
        """Ready for repetitions."""
        source = PromptSource(self._vocab_size, next(self._seeds))
        prompts = source.prompts(_NUM_PREFIXES, self._sizes.prefix_tokens + 1)
        with self._directory() as disk:
            restores = Restores(
                prompts, lambda: tiered(self._config, _ROOMY, disk), self._plain, disk
            )
            restores.fill()
            yield restores

    def decode(self, engine: TieredEngine) -> dict[str, float]:
        """Medians over runs; blocks are those of all runs together."""
        beside = DecodeBesideStoring(engine, self._sizes.decode)
        source = PromptSource(self._vocab_size, next(self._seeds))
        runs = [beside.run(source, is_storing_first=i % 2 == 0) for i in range(_RUNS)]
        num_host, num_disk = (
            sum(getattr(each, name) for each in runs) for name in ("num_host", "num_disk")
        )
        return {
            "decode_slowdown_while_storing": median(each.slowdown() for each in runs),
            "decode_mean_slowdown_while_storing": median(each.mean_slowdown() for each in runs),
            "steps_while_storing": float(sum(len(each.storing_s) for each in runs)),
            "blocks_to_host_while_storing": float(num_host),
            "blocks_to_disk_while_storing": float(num_disk),
            "mib_while_storing": (num_host + num_disk) * engine.slab_bytes / (1 << 20),
            "held_step_ms": median(median(each.held_s) for each in runs) * 1e3,
            "storing_step_ms": median(median(each.storing_s) for each in runs) * 1e3,
        }

    @contextmanager
    def tiered(self) -> Iterator[TieredEngine]:
        """With nothing in its tiers."""
        with self._directory() as disk, tiered(self._config, _SHARES, disk) as engine:
            yield engine

    def _replay(self, workload: Workload) -> Replayed:
        with self.tiered() as engine:
            replayed = Replay(workload, self._plain, engine).run()
            say(f"store: {engine.stats()}")
            return replayed

    @contextmanager
    def _directory(self) -> Iterator[Path]:
        with tempfile.TemporaryDirectory(prefix="kv-", dir=self._parent) as made:
            yield Path(made).resolve()


class Collection:
    """Figures of repetitions, each made when the machine is quiet."""

    def __init__(self, report: Report, patience_s: float) -> None:
        self._report = report
        self._patience_s = patience_s
        self._found: dict[str, list[float]] = {}

    def repeat(self, times: int, measure: Callable[[int], dict[str, float]]) -> None:
        """`measure` takes the repetition's number."""
        for number in range(times):
            with quiet(list, self._patience_s) as contention:
                figures = measure(number)
            share = round(contention.others_share, 3)
            self._report.run(repetition=number, others_cpu_share=share, **figures)
            say(f"{number + 1}/{times}  others' CPU {share:.1%}  {_line(figures)}")
            for name, value in figures.items():
                self._found.setdefault(name, []).append(value)

    def add_to_report(self) -> None:
        for name, values in self._found.items():
            self._report.add(name, values)


def main(  # noqa: PLR0913  # a command's options
    model: Annotated[str, typer.Option(help="As for `rtp-serve chat`.")] = EngineConfig().model,
    repetitions: Annotated[int, typer.Option(help="Of transfers.", min=1)] = 5,
    drawings: Annotated[int, typer.Option(help="Of each workload.", min=1)] = 2,
    num_blocks: Annotated[int, typer.Option(help="Of the device.", min=16)] = 200,
    turns: Annotated[int, typer.Option(help="Of a drawing of chats.", min=16)] = 240,
    questions: Annotated[int, typer.Option(help="On documents.", min=9)] = 64,
    prefix_tokens: Annotated[int, typer.Option(help="That are restored.", min=16)] = 2048,
    batch: Annotated[int, typer.Option(help="Of sequences that decode.", min=1)] = 8,
    decode_steps: Annotated[int, typer.Option(help="Half of them beside storing.", min=16)] = 96,
    parent: Annotated[Path, typer.Option(help="Where the disk tier is made.")] = Path("build"),
    traces: Annotated[Path | None, typer.Option(help="Directory with block traces.")] = None,
    parts: Annotated[
        list[str] | None,
        typer.Option("--part", help=f"Default: all, which are {', '.join(_PARTS)}."),
    ] = None,
    threads: Annotated[int | None, typer.Option(help="Default: all cores.")] = None,
    patience: Annotated[float, typer.Option(help="Seconds to wait for a quiet machine.")] = 10.0,
    seed: int = 0,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")] = False,
    output: Annotated[Path | None, typer.Option(help="Append raw runs as JSON lines.")] = None,
) -> None:
    """Chats, documents, single restores and decoding, with tiers and without."""
    sizes = Sizes(num_blocks, turns, questions, prefix_tokens, batch, decode_steps)
    report = Report(output)
    sizes.check()
    wanted = parts or _PARTS
    if unknown := sorted(set(wanted) - set(_PARTS)):
        raise ConfigError(f"--part: must be one of {', '.join(_PARTS)}; got {unknown[0]!r}")
    parent.mkdir(parents=True, exist_ok=True)
    config = EngineConfig.model_validate(
        {"model": model, "num_threads": threads, "cache": {"num_blocks": num_blocks}}
    )
    if traces is not None:
        report.add("duel_minus_best", [duel_minus_best(traces, report)])
    collection = Collection(report, patience)
    with device_only(config) as plain:
        benchmark = TierBenchmark(config, sizes, plain, parent, seed)
        if "chats" in wanted:
            collection.repeat(drawings, lambda _: benchmark.chats())
        if "documents" in wanted:
            collection.repeat(drawings, lambda _: benchmark.documents())
        if "restores" in wanted:
            with benchmark.restores() as restores:
                collection.repeat(repetitions, lambda _: restores.repetition())
        if "decode" in wanted:
            with benchmark.tiered() as engine:
                collection.repeat(repetitions, lambda _: benchmark.decode(engine))
    collection.add_to_report()
    report.show(as_json=as_json)


def _line(figures: dict[str, float]) -> str:
    return "  ".join(f"{name} {short(value)}" for name, value in figures.items())


if __name__ == "__main__":
    run(main)
