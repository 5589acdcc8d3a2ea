"""One side of `benchmarks.moe`, in a process of its own.

    python -m benchmarks.moe_sides engine|transformers DIRECTORY SETTINGS

SETTINGS is `Settings` as JSON; what was measured, `Measured`, is one JSON line on stdout.
"""

import os
import subprocess
import sys
import time
from collections.abc import Generator, Iterator
from contextlib import closing
from operator import attrgetter
from pathlib import Path
from statistics import fmean, median
from typing import Annotated, Literal

import msgspec
import torch
import typer

from benchmarks.ceilings import ReadProbe
from benchmarks.command import run
from benchmarks.in_process import InProcessEngine
from benchmarks.prompts import PromptSource
from benchmarks.quiet import quiet
from rtp_serve.config.engine import CacheConfig, EngineConfig, SchedulerConfig
from rtp_serve.config.model import read_model_config
from rtp_serve.errors import RtpServeError
from rtp_serve.worker.threads import use_compute_threads

Side = Literal["engine", "transformers"]
"""Who decodes."""

# batched_mm copies an expert's weights for every pair: gigabytes a layer for the prompts.
IMPLEMENTATIONS = ("grouped_mm", "eager")
"""Of experts in transformers."""

_HUGE_PAGES = {"THP_MEM_ALLOC_ENABLE": "1"}
"""torch asks for them then, for what it allocates."""

PROMPT_TOKENS = 32
_FIRST_STEPS = 3
"""With the prompts, and before caches and threads are warm."""


class SideFailed(RtpServeError):
    """Its process ended without a result."""


class Settings(msgspec.Struct, frozen=True):
    """What a side does."""

    batch: int
    steps: int
    """That are measured."""

    threads: int
    seed: int
    """Of the prompts."""

    probe_bytes: int = 1 << 30
    """Plain memory that is read beside the engine's steps."""

    patience_s: float = 30.0
    """To wait at most until nobody else uses the machine."""

    implementation: str | None = None
    """transformers: of experts; None tries all."""

    has_huge_pages: bool = False
    """transformers: its weights lie in them."""


class Measured(msgspec.Struct, frozen=True):
    """What came of it."""

    step_s: float
    """The median of the decode steps."""

    others_share: float
    """Of the machine's CPU time, what other processes used meanwhile."""

    read_bytes_per_s: float = 0.0
    """Engine: plain reads before and after the steps, in the mean."""

    implementation: str = ""
    """transformers: the fastest of those tried."""

    active_experts: float = 0.0
    """transformers: of a layer, in the mean of some steps."""


def measure_side(side: Side, directory: Path, settings: Settings) -> Measured:
    """In a fresh process. Raises SideFailed."""
    command = [sys.executable, "-m", "benchmarks.moe_sides", side, str(directory)]
    environment = os.environ | (_HUGE_PAGES if settings.has_huge_pages else {})
    done = subprocess.run(
        [*command, msgspec.json.encode(settings).decode()],
        capture_output=True,
        text=True,
        env=environment,
        cwd=Path(__file__).parents[1],
        check=False,
    )
    if done.returncode:
        raise SideFailed(f"{side} ended with {done.returncode}: {done.stderr[-2000:]}")
    return msgspec.json.decode(done.stdout, type=Measured)


def measure_engine(directory: Path, settings: Settings) -> Measured:
    config = EngineConfig(
        model=str(directory),
        num_threads=settings.threads,
        max_model_len=1024,
        cache=CacheConfig(num_blocks=64 * settings.batch),
        scheduler=SchedulerConfig(max_num_seqs=settings.batch),
    )
    use_compute_threads(settings.threads)
    memory = ReadProbe(settings.probe_bytes)
    memory.choose()
    prompts = _prompts(directory, settings)
    with closing(InProcessEngine(config)) as engine, quiet(list, settings.patience_s) as contention:
        before = memory.bytes_per_s()
        with closing(engine.steps(prompts, _FIRST_STEPS + settings.steps + 1)) as steps:
            step_s = _median_step_s(steps, settings.steps)
        rate = fmean((before, memory.bytes_per_s()))
    return Measured(step_s, contention.others_share, read_bytes_per_s=rate)


def measure_transformers(directory: Path, settings: Settings) -> Measured:
    torch.set_num_threads(settings.threads)
    theirs = Transformers(directory)
    prompts = _prompts(directory, settings)
    names = [settings.implementation] if settings.implementation else IMPLEMENTATIONS
    found = []
    for name in names:
        theirs.choose(name)
        with (
            quiet(list, settings.patience_s) as contention,
            closing(theirs.steps(prompts)) as steps,
        ):
            step_s = _median_step_s(steps, settings.steps)
        found.append(Measured(step_s, contention.others_share, implementation=name))
    fastest = min(found, key=attrgetter("step_s"))
    return msgspec.structs.replace(fastest, active_experts=theirs.active_experts(prompts))


class Transformers:
    """Greedy decoding of a batch by transformers, step by step."""

    def __init__(self, directory: Path) -> None:
        # slow to import, and of one side alone
        from transformers import AutoModelForCausalLM

        self._model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.bfloat16).eval()

    def choose(self, implementation: str) -> None:
        """Of experts, from now on."""
        self._model.set_experts_implementation(implementation)

    @torch.inference_mode()
    def steps(self, prompts: list[tuple[int, ...]]) -> Generator[None, None, None]:
        """The prompts' step, then one token of each at a time, without end."""
        tokens, cache = torch.tensor(prompts), None
        while True:
            output = self._model(tokens, cache=cache, use_cache=True, logits_to_keep=1)
            tokens, cache = output.logits[:, -1].argmax(-1, keepdim=True), output.past_key_values
            yield

    @torch.inference_mode()
    def active_experts(self, prompts: list[tuple[int, ...]]) -> float:
        """Experts of a layer that a decode step of the batch needs, in the mean of some steps."""
        tokens, cache, counts = torch.tensor(prompts), None, []
        top_k = self._model.config.num_experts_per_tok
        for step in range(6):
            output = self._model(tokens, cache=cache, output_router_logits=True)
            tokens, cache = output.logits[:, -1].argmax(-1, keepdim=True), output.past_key_values
            if step:
                counts += [
                    len(logits.topk(top_k).indices.unique()) for logits in output.router_logits
                ]
        return fmean(counts)


def _prompts(directory: Path, settings: Settings) -> list[tuple[int, ...]]:
    vocab_size = read_model_config(directory).vocab_size
    return PromptSource(vocab_size, settings.seed).prompts(settings.batch, PROMPT_TOKENS)


def _median_step_s(steps: Iterator[object], count: int) -> float:
    """Of `count` steps, after those that come first."""
    for _ in range(_FIRST_STEPS):
        next(steps)
    times = []
    for _ in range(count):
        started_s = time.perf_counter()
        next(steps)
        times.append(time.perf_counter() - started_s)
    return median(times)


def main(
    side: Annotated[str, typer.Argument(help="engine or transformers.")],
    directory: Annotated[Path, typer.Argument(help="A checkpoint.")],
    settings: Annotated[str, typer.Argument(help="As JSON.")],
) -> None:
    """Decode steps of one side."""
    measure = {"engine": measure_engine, "transformers": measure_transformers}[side]
    found = measure(directory, msgspec.json.decode(settings, type=Settings))
    print(msgspec.json.encode(found).decode())


if __name__ == "__main__":
    run(main)
