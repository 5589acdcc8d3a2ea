"""What a decode step costs more on two ranks of a thread each than on one rank of two threads.

Both have the same cores and the same weights, and take turns; the one that does not run sleeps.
"""

import time
from collections.abc import Iterator
from contextlib import ExitStack, closing
from itertools import islice
from pathlib import Path
from statistics import median

from benchmarks.in_process import InProcessEngine
from benchmarks.prompts import PromptSource
from benchmarks.report import Report, say
from rtp_serve.config.engine import CacheConfig, EngineConfig, SchedulerConfig
from rtp_serve.config.model import read_model_config
from rtp_serve.config.parallel import ParallelConfig
from rtp_serve.worker.threads import use_compute_threads

_CORES = 2
_BATCHES = (1, 8)
_PROMPT_TOKENS = 32
_STEPS = 24
_FIRST_STEPS = 3
"""With the prompts, and before threads and caches are warm."""


def measure(report: Report, repetitions: int, model: Path) -> None:
    """`tp2_step_overhead_fraction` at one sequence, and the same by batch."""
    say("decode steps of one rank and of two")
    prompts = PromptSource(read_model_config(model).vocab_size, seed=1)
    found: dict[int, list[float]] = {batch: [] for batch in _BATCHES}
    with ExitStack() as opened:
        one = opened.enter_context(closing(InProcessEngine(_config(model, 1))))
        two = opened.enter_context(closing(InProcessEngine(_config(model, 2))))
        for _ in range(repetitions):
            for batch in _BATCHES:
                taken = prompts.prompts(batch, _PROMPT_TOKENS)
                # Both run in this thread, and how many compute with it is the thread's.
                use_compute_threads(_CORES)
                alone_s = _step_s(one, taken)
                use_compute_threads(_CORES // 2)
                found[batch].append(_step_s(two, taken) / alone_s - 1)
    report.add("tp2_step_overhead_fraction", found[_BATCHES[0]])
    for batch, fractions in found.items():
        report.add(f"tp2_step_overhead_fraction_batch_{batch}", fractions)


def _config(model: Path, tp: int) -> EngineConfig:
    return EngineConfig(
        model=str(model),
        num_threads=_CORES // tp,
        max_model_len=512,
        cache=CacheConfig(num_blocks=64 * max(_BATCHES)),
        scheduler=SchedulerConfig(max_num_seqs=max(_BATCHES)),
        parallel=ParallelConfig(tp=tp),
    )


def _step_s(engine: InProcessEngine, prompts: list[tuple[int, ...]]) -> float:
    """The median of decode steps."""
    with closing(engine.steps(prompts, _FIRST_STEPS + _STEPS + 1)) as steps:
        times = list(islice(_timed(steps), _FIRST_STEPS + _STEPS))
        for _ in steps:
            pass
    return median(times[_FIRST_STEPS:])


def _timed(steps: Iterator[object]) -> Iterator[float]:
    while True:
        started_s = time.perf_counter()
        if next(steps, None) is None:
            return
        yield time.perf_counter() - started_s
