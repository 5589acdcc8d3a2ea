"""We, vLLM's CPU build and llama.cpp side by side, all by HTTP, in turn and one at a time.

The peers are found in the directory that `$PEERS` names; `docs/benchmarks.md` says what must be
there. A figure `NAME_x_PEER` is ours over theirs: above 1 is better for throughput, below 1 for
latencies and memory. Each repetition gives one ratio; the figure is their median.
"""

import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from benchmarks import plans
from benchmarks.checkpoints import SMOLLM2_GGUF, qwen_directory, qwen_gguf
from benchmarks.command import run
from benchmarks.interleave import Interleaver
from benchmarks.plans import Settings
from benchmarks.ratios import (
    LLAMACPP,
    LLAMACPP_FLASH,
    PROMISED,
    US,
    VARIANTS,
    memory_ratio,
    ratios,
)
from benchmarks.report import Report, say
from benchmarks.servers import Server, ServerPlan
from benchmarks.vllm_load import VllmBench
from benchmarks.workloads import COMPARED, SWEPT, WARM_UP, WORKLOADS
from rtp_serve.config.engine import EngineConfig
from rtp_serve.config.model import read_model_config
from rtp_serve.config.sizes import parse_bytes
from rtp_serve.errors import ConfigError
from rtp_serve.loader.hub import resolve
from rtp_serve.worker.threads import available_cores

FIGURES = PROMISED
MODELS = {"smollm2": "", "qwen": "qwen_"}
"""Name of a model → prefix of its figures."""

SERVERS = (US, "vllm", *(server for servers in VARIANTS.values() for server in servers))


@dataclass(frozen=True, slots=True)
class Choice:
    """What to compare."""

    servers: tuple[str, ...]
    workloads: tuple[str, ...]
    repetitions: int
    prompt_cache_mib: int
    seed: int
    patience_s: float


def compare(settings: Settings, choice: Choice, peers: Path, report: Report, prefix: str) -> None:
    """Run everything and put the ratios into `report`."""
    logs = peers / "results"
    logs.mkdir(parents=True, exist_ok=True)
    generator = VllmBench(
        peers / "venv-vllm/bin/python",
        resolve(EngineConfig().model),
        logs / "load.log",
        reuses_connections=False,
    )
    with closing(generator), started(settings, choice, peers) as servers:
        interleaver = Interleaver(servers, generator, report, choice.seed, choice.patience_s)
        for server in servers:
            interleaver.run(server, WARM_UP, -1)
        for name in choice.workloads:
            for number in range(choice.repetitions):
                interleaver.repetition(WORKLOADS[name], number)
    peers_run = [server for server in choice.servers if server not in (US, LLAMACPP_FLASH)]
    for peer in peers_run:
        if US in choice.servers:
            for name, values in ratios(interleaver.measured, peer):
                report.add(prefix + name, values)
            seen = tuple({run.workload for run in interleaver.runs})
            report.add(f"{prefix}pss_x_{peer}", memory_ratio(interleaver.measured, peer, seen))
    num_failed = sum(not run.figures for run in interleaver.runs)
    report.add(f"{prefix}failed_runs", [float(num_failed)])


@contextmanager
def started(settings: Settings, choice: Choice, peers: Path) -> Iterator[list[Server]]:
    """The chosen servers, ready and halted, started one after the other."""
    make: dict[str, Callable[[], ServerPlan]] = {
        US: lambda: plans.ours(settings, work),
        "vllm": lambda: plans.vllm(settings, peers),
        LLAMACPP: lambda: plans.llamacpp(
            LLAMACPP, settings, peers, choice.prompt_cache_mib, has_flash_attention=False
        ),
        LLAMACPP_FLASH: lambda: plans.llamacpp(
            LLAMACPP_FLASH, settings, peers, choice.prompt_cache_mib, has_flash_attention=True
        ),
    }
    with ExitStack() as stack:
        work = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="rtp-bench-")))
        servers = []
        for name in choice.servers:
            server = Server(make[name](), peers / "results" / f"{name}.log")
            servers.append(stack.enter_context(closing(server)))
            server.wait_until_ready()
            server.halt()
        yield servers


def settings_of(
    model: str, servers: tuple[str, ...], peers: Path, kv_bytes: int, threads: int | None
) -> Settings:
    """Brings the checkpoint, and llama.cpp's if it is among `servers`; the random ones are made on
    first use and kept in `peers`."""
    directory = qwen_directory(peers) if model == "qwen" else resolve(EngineConfig().model)
    has_llamacpp = any(server in VARIANTS[LLAMACPP] for server in servers)
    gguf = _gguf(model, peers) if has_llamacpp else None
    shape = read_model_config(directory)
    return Settings(directory, gguf, shape, kv_bytes, threads or available_cores())


def _gguf(model: str, peers: Path) -> Path:
    """Of llama.cpp. SmolLM2's is needed for the random one too, which has its tokenizer."""
    smollm2 = peers / SMOLLM2_GGUF
    if not smollm2.exists():
        raise ConfigError(f"$PEERS: {smollm2} is missing; docs/benchmarks.md says how to make it")
    return qwen_gguf(peers) if model == "qwen" else smollm2


def peers_directory() -> Path:
    """`$PEERS`, else a directory of the user's cache."""
    return Path(os.environ.get("PEERS") or Path.home() / ".cache" / "rtp-serve-peers")


def chosen(text: str, allowed: tuple[str, ...], what: str) -> tuple[str, ...]:
    """The names of a comma list. Raises ConfigError for one that is not allowed."""
    names = tuple(name for name in text.split(",") if name)
    for name in names:
        if name not in allowed:
            raise ConfigError(f"{what}: {name!r} is not one of {', '.join(allowed)}")
    return names


def main(  # noqa: PLR0913  # a command's options
    model: Annotated[str, typer.Option(help="smollm2 or qwen (random, 0.6B shape).")] = "smollm2",
    workloads: Annotated[str, typer.Option(help="Comma list.")] = ",".join(COMPARED),
    sweep: Annotated[bool, typer.Option(help="Bursts of 1 to 16, for the plot.")] = False,
    only: Annotated[str, typer.Option(help="Servers, a comma list.")] = ",".join(SERVERS),
    repetitions: Annotated[int, typer.Option(min=1)] = 3,
    kv_memory: Annotated[str, typer.Option(help="Keys and values of every server.")] = "3GiB",
    threads: Annotated[int | None, typer.Option(help="Of every server; default: cores.")] = None,
    prompt_cache_mib: Annotated[int, typer.Option(help="llama.cpp's, beside its slots.")] = 1024,
    seed: Annotated[int, typer.Option(help="Of the prompts.")] = 1,
    patience: Annotated[float, typer.Option(help="Seconds to wait for a quiet machine.")] = 30.0,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")] = False,
    output: Annotated[Path | None, typer.Option(help="Append raw runs as JSON lines.")] = None,
) -> None:
    """Ratios against vLLM and llama.cpp."""
    peers = peers_directory()
    names = ",".join(SWEPT) if sweep else workloads
    choice = Choice(
        chosen(only, SERVERS, "--only"),
        chosen(names, tuple(WORKLOADS), "--workloads"),
        repetitions,
        prompt_cache_mib,
        seed,
        patience,
    )
    chosen(model, tuple(MODELS), "--model")
    settings = settings_of(model, choice.servers, peers, parse_bytes(kv_memory), threads)
    report = Report(output)
    say(f"peers in {peers}; {settings.num_threads} threads, {kv_memory} for keys and values")
    compare(settings, choice, peers, report, MODELS[model])
    report.show(as_json=as_json)


if __name__ == "__main__":
    run(main)
