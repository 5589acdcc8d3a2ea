"""The engine in this process, against what the machine could do.

Ceilings are measured between the steps that they are compared with; a figure is the median of its
repetitions.

decode_tokens_per_s          one sequence, its steps after the first token, reads left out
prefill_tokens_per_s         the steps of a long prompt, GEMMs left out
decode_bandwidth_fraction    bytes a decode step must read (weights, and KV at the mean context) per
                             second of step, over the rate of plain reads before and after: the
                             median over blocks of steps
prefill_gemm_fraction        FLOPs of a prefill (linears, causal half of attention) per second, over
                             the rate of GEMMs before and after each step, each of the model's
                             shapes by its fastest implementation
dispatch_fraction            share of a decode step outside compiled kernels, of runs in which each
                             of the kernels' entry points is wrapped by a timer. What the timers
                             cost counts as outside, and so do torch's own small operations;
                             `timed_decode_step_ms` stands beside `decode_step_ms`, the same without
decode_tokens_per_s_bN       N sequences that all decode
prefill_s_nN                 with --curves: all steps of a prompt of N tokens
decode_step_s_bN_cC          with --curves: a decode step of N sequences with C tokens each in the
                             mean. `rtp-serve simulate --fit` models an engine by these two
"""

import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Annotated

import typer

from benchmarks.ceilings import GemmProbe, ReadProbe
from benchmarks.command import run
from benchmarks.in_process import InProcessEngine
from benchmarks.pairing import PairedRun, alternate
from benchmarks.prompts import PromptSource
from benchmarks.report import Report, say
from benchmarks.samples import short
from benchmarks.traffic import decode_bytes, layer_shapes, prefill_flops
from rtp_serve.config.engine import CacheConfig, EngineConfig, SchedulerConfig
from rtp_serve.config.model import ModelConfig, read_model_config
from rtp_serve.errors import ConfigError
from rtp_serve.loader.hub import resolve
from rtp_serve.ops import probe
from rtp_serve.ops.dispatch import Backend, backend
from rtp_serve.worker.threads import use_compute_threads

FIGURES = (
    "decode_bandwidth_fraction",
    "prefill_gemm_fraction",
    "dispatch_fraction",
    "decode_tokens_per_s",
    "prefill_tokens_per_s",
)

_BLOCK_STEPS = 4
"""Decode steps between two reads of memory."""

_SWEEP_TOKENS = 32
"""Steps of a sweep in which all sequences decode, at least."""


_CURVE_PREFILLS = (32, 256, 1024, 2048)
_CURVE_BATCHES = (1, 4, 16)
_CURVE_CONTEXTS = (64, 1024)
"""Lengths, batches and prompts between which an engine's curves are fitted."""


@dataclass(frozen=True, slots=True)
class Sizes:
    """Tokens of the measured requests."""

    prompt: int
    output: int
    prefill: int
    batches: tuple[int, ...]
    has_curves: bool = False

    @property
    def num_blocks(self) -> int:
        """KV blocks that hold the largest of them, and some more."""
        swept = max(self.batches, default=1)
        tokens = max(
            self.prefill + 1,
            self.prompt + self.output,
            swept * (self.prompt + sweep_output(swept)),
        )
        if self.has_curves:
            most = max(_CURVE_BATCHES)
            tokens = max(tokens, most * (max(_CURVE_CONTEXTS) + sweep_output(most)))
        return -(-tokens // 16) + self.max_sequences + 64

    @property
    def max_sequences(self) -> int:
        """That decode at once."""
        return max(1, *self.batches, *(_CURVE_BATCHES if self.has_curves else ()))


def sweep_output(batch: int) -> int:
    """Tokens for the first sequences to be still at it when the last one's prompt is done."""
    return _SWEEP_TOKENS + 2 * batch


class EngineBenchmark:
    """One model's engine, its ceilings and what was measured of them."""

    def __init__(
        self, config: EngineConfig, model: ModelConfig, sizes: Sizes, seed: int, probe_bytes: int
    ) -> None:
        self._model = model
        self._sizes = sizes
        use_compute_threads(config.num_threads)
        self._engine = InProcessEngine(config)
        self._prompts = PromptSource(model.vocab_size, seed)
        self._memory = ReadProbe(probe_bytes)
        self._gemm = GemmProbe(layer_shapes(model), config.scheduler.max_num_batched_tokens)

    def warm_up(self) -> None:
        """Threads started, memory touched."""
        self._decode()
        self._prefill()

    def repetition(self) -> dict[str, float]:
        """Every figure once, ceilings among them."""
        best_read_rate = self._memory.choose()
        decode = self._decode()
        kernel_s, timed_step_s = self._kernel_s()
        gemm_rates = self._gemm.choose()
        prefill = self._prefill()
        flops = prefill_flops(self._model, self._sizes.prefill)
        # The output's tokens see the prompt and what came before them: half of it in the mean.
        read = decode_bytes(self._model, self._sizes.prompt + self._sizes.output / 2)
        return {
            "decode_bandwidth_fraction": decode.fraction(read.total),
            "prefill_gemm_fraction": flops.total / prefill.seconds / prefill.ceiling,
            "dispatch_fraction": 1 - kernel_s / timed_step_s,
            "decode_tokens_per_s": 1 / decode.step_s,
            "prefill_tokens_per_s": self._sizes.prefill / prefill.seconds,
            "decode_step_ms": decode.step_s * 1e3,
            "timed_decode_step_ms": timed_step_s * 1e3,
            "kernels_ms": kernel_s * 1e3,
            "step_megabytes": read.total / 1e6,
            "prefill_gflops": flops.total / 1e9,
            "read_gigabytes_per_s": decode.ceiling / 1e9,
            "best_read_gigabytes_per_s": best_read_rate / 1e9,
            "gemm_gflops_per_s": prefill.ceiling / 1e9,
            **{
                f"gemm_{name}_{who}_gflops_per_s": rate / 1e9
                for name, by_who in gemm_rates.by_shape.items()
                for who, rate in by_who.items()
            },
        }

    def sweep(self) -> Iterator[tuple[str, float]]:
        """Tokens per second of each batch size while all of its sequences decode."""
        for batch in self._sizes.batches:
            prompts = self._prompts.prompts(batch, self._sizes.prompt)
            times = self._engine.token_times(prompts, sweep_output(batch))
            yield f"decode_tokens_per_s_b{batch}", rate_of_all(times)

    def curves(self) -> Iterator[tuple[str, float]]:
        """Seconds of prefills, and of decode steps."""
        for length in _CURVE_PREFILLS:
            ((first_s, *_),) = self._engine.token_times([self._prompts.prompt(length)], 1)
            yield f"prefill_s_n{length}", first_s
        for context in _CURVE_CONTEXTS:
            for batch in _CURVE_BATCHES:
                output = sweep_output(batch)
                times = self._engine.token_times(self._prompts.prompts(batch, context), output)
                mean_context = context + output // 2
                yield f"decode_step_s_b{batch}_c{mean_context}", batch / rate_of_all(times)

    def _decode(self) -> PairedRun:
        prompt = self._prompts.prompt(self._sizes.prompt)
        with closing(self._engine.steps([prompt], self._sizes.output)) as steps:
            # The prompt's steps give nothing but the last one, which gives the first token.
            next(filter(None, steps))
            return alternate(steps, self._memory.bytes_per_s, _BLOCK_STEPS, time.perf_counter)

    def _prefill(self) -> PairedRun:
        prompt = self._prompts.prompt(self._sizes.prefill)
        with closing(self._engine.steps([prompt], 1)) as steps:
            return alternate(steps, self._gemm.flops_per_s, 1, time.perf_counter)

    def _kernel_s(self) -> tuple[float, float]:
        """Time inside kernels of a decode step, and of the whole step while that is timed."""
        prompt = self._prompts.prompt(self._sizes.prompt)
        marks: list[tuple[float, int]] = []
        with (
            probe.kernel_time(time.perf_counter_ns) as spent,
            closing(self._engine.steps([prompt], self._sizes.output)) as steps,
        ):
            for deltas in steps:
                if deltas:
                    marks.append((time.perf_counter(), spent.elapsed_ns))
        num_steps = len(marks) - 1
        kernel_s = (marks[-1][1] - marks[0][1]) * 1e-9 / num_steps
        return kernel_s, (marks[-1][0] - marks[0][0]) / num_steps


def rate_of_all(times: list[list[float]]) -> float:
    """Tokens per second from when the last sequence begins until the first one ends."""
    start_s = max(each[0] for each in times)
    end_s = min(each[-1] for each in times)
    num_tokens = sum(start_s < moment <= end_s for each in times for moment in each)
    return num_tokens / (end_s - start_s)


def main(  # noqa: PLR0913  # a command's options
    model: Annotated[str, typer.Option(help="As for `rtp-serve chat`.")] = EngineConfig().model,
    repetitions: Annotated[int, typer.Option(min=1)] = 7,
    sweep_repetitions: Annotated[int, typer.Option(min=0)] = 3,
    prompt_tokens: Annotated[int, typer.Option(min=1)] = 512,
    output_tokens: Annotated[int, typer.Option(min=3)] = 128,
    prefill_tokens: Annotated[int, typer.Option(min=1)] = 2048,
    batches: Annotated[str, typer.Option(help="Sizes of the sweep.")] = "1,2,4,8,16,32",
    chunk_tokens: Annotated[
        int, typer.Option(help="Token budget of a step.", min=1)
    ] = SchedulerConfig().max_num_batched_tokens,
    curves: Annotated[bool, typer.Option(help="Also what a simulation models it by.")] = False,
    threads: Annotated[int | None, typer.Option(help="Default: all cores.")] = None,
    probe_mib: Annotated[int, typer.Option(help="Memory the read probe reads.", min=1)] = 1024,
    seed: int = 0,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")] = False,
    output: Annotated[Path | None, typer.Option(help="Append raw runs as JSON lines.")] = None,
) -> None:
    """Decode, prefill and dispatch in this process, against bandwidth and GEMM rate."""
    if backend() is not Backend.COMPILED:
        raise ConfigError("the benchmark needs the compiled kernels")
    sizes = Sizes(prompt_tokens, output_tokens, prefill_tokens, _batch_sizes(batches), curves)
    config = EngineConfig.model_validate(
        {
            "model": model,
            "num_threads": threads,
            "cache": CacheConfig(num_blocks=sizes.num_blocks),
            "scheduler": {
                "max_num_batched_tokens": chunk_tokens,
                "max_num_seqs": min(chunk_tokens, sizes.max_sequences),
            },
        }
    )
    shape = read_model_config(resolve(model))
    benchmark = EngineBenchmark(config, shape, sizes, seed, probe_mib << 20)
    report = Report(output)
    benchmark.warm_up()
    found: dict[str, list[float]] = {}
    for number in range(repetitions):
        figures = benchmark.repetition()
        report.run(model=model, repetition=number, **figures)
        say(f"{number + 1}/{repetitions}  " + _line(figures))
        for name, value in figures.items():
            found.setdefault(name, []).append(value)
    for number in range(sweep_repetitions):
        curve = benchmark.curves() if curves else iter(())
        for name, value in chain(benchmark.sweep(), curve):
            report.run(model=model, repetition=number, **{name: value})
            say(f"{number + 1}/{sweep_repetitions}  {name} {short(value)}")
            found.setdefault(name, []).append(value)
    for name, values in found.items():
        report.add(name, values)
    report.show(as_json=as_json)


def _batch_sizes(text: str) -> tuple[int, ...]:
    return tuple(int(each) for each in text.split(",") if each)


def _line(figures: dict[str, float]) -> str:
    return "  ".join(f"{name} {short(figures[name])}" for name in FIGURES)


if __name__ == "__main__":
    run(main)
