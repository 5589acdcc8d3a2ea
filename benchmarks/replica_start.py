"""How quickly a second replica of a node starts, and what the weights of two take.

    first     reads the checkpoint, writes and maps the file of packed weights
    second    maps the file: started anew in every repetition, while the first one is there
    private   reads the checkpoint into memory of its own; for comparison of decode steps

The page cache is warm: the file was written by the first replica.
"""

import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import typer

from benchmarks.checkpoints import qwen_directory
from benchmarks.command import run
from benchmarks.processes import mapped_pss_bytes
from benchmarks.quiet import quiet
from benchmarks.report import Report, say
from benchmarks.samples import short
from rtp_serve.config.engine import EngineConfig
from rtp_serve.errors import RtpServeError

FIGURES = ("warm_replica_ms", "pss_two_over_one", "decode_mapped_over_private")

_WARM_FORWARDS = 3
_DECODE_TURNS = 3


@dataclass(frozen=True, slots=True)
class Sizes:
    """Tokens of the requests."""

    prompt: int
    output: int


class Replica:
    """A process with an engine in it."""

    def __init__(self, config: EngineConfig, sizes: Sizes) -> None:
        """Returns when the process has imported everything; no model is loaded yet."""
        self._sizes = sizes
        command = [sys.executable, "-m", "benchmarks.replica", config.model_dump_json()]
        self._process = subprocess.Popen(
            [*command, str(sizes.prompt)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self._answer()

    @property
    def pid(self) -> int:
        return self._process.pid

    def forward_ms(self) -> float:
        """From now to the first token of a request; the first call loads the model."""
        return self._times(1)[0] * 1e3

    def decode_step_ms(self) -> float:
        """The median of a request's steps."""
        return step_ms(self._times(self._sizes.output))

    def close(self) -> None:
        """End the process; a file that it is writing is finished first."""
        self._process.communicate()

    def _times(self, num_tokens: int) -> list[float]:
        assert self._process.stdin is not None
        self._process.stdin.write(f"{num_tokens}\n")
        self._process.stdin.flush()
        times: list[float] = json.loads(self._answer())
        return times

    def _answer(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RtpServeError(f"the replica ended with code {self._process.wait()}")
        return line


def step_ms(times: Sequence[float]) -> float:
    """The median gap between tokens."""
    return median(later - earlier for earlier, later in pairwise(times)) * 1e3


def extra_ms(first_ms: float, warm_ms: Sequence[float]) -> float:
    """What the first forward took beyond a warm one."""
    return first_ms - median(warm_ms)


class Starts:
    """The replicas that stay for the whole benchmark, and the runs made beside them."""

    def __init__(
        self,
        first: Replica,
        private: Replica,
        make_second: Callable[[], AbstractContextManager[Replica]],
        store: Path,
    ) -> None:
        self._first = first
        self._private = private
        self._make_second = make_second
        self._store = store

    def load(self) -> dict[str, float]:
        """The first replica's and the private one's start, once."""
        loads = {
            "first_replica_ms": self._first.forward_ms(),
            "private_replica_ms": self._private.forward_ms(),
        }
        with self._make_second() as second:
            second.forward_ms()  # waits until the first one has finished the file
        return loads

    def repetition(self) -> dict[str, float]:
        """Every figure once."""
        self._first.forward_ms()  # an idle process may lose pages of its mapping
        alone = self._mapped_bytes(self._first)
        with self._make_second() as second:
            first_ms = second.forward_ms()
            warm_ms = [second.forward_ms() for _ in range(_WARM_FORWARDS)]
            both = self._mapped_bytes(self._first) + self._mapped_bytes(second)
            steps = [
                (second.decode_step_ms(), self._private.decode_step_ms())
                for _ in range(_DECODE_TURNS)
            ]
        return {
            "warm_replica_ms": extra_ms(first_ms, warm_ms),
            "pss_two_over_one": both / alone,
            "decode_mapped_over_private": median(mapped / private for mapped, private in steps),
            "warm_forward_ms": median(warm_ms),
            "mapped_step_ms": median(mapped for mapped, _ in steps),
            "private_step_ms": median(private for _, private in steps),
            "mapped_mebibytes": alone / (1 << 20),
        }

    def _mapped_bytes(self, replica: Replica) -> int:
        return mapped_pss_bytes(replica.pid, str(self._store))


@contextmanager
def started(config: EngineConfig, sizes: Sizes) -> Iterator[Replica]:
    """A replica, without its model yet."""
    replica = Replica(config, sizes)
    try:
        yield replica
    finally:
        replica.close()


def main(  # noqa: PLR0913  # a command's options
    models: Annotated[
        Path, typer.Option(help="Where the random checkpoint is, or is made, and the store.")
    ] = Path("build/models"),
    model: Annotated[str | None, typer.Option(help="Another checkpoint's directory.")] = None,
    repetitions: Annotated[int, typer.Option(min=1)] = 7,
    prompt_tokens: Annotated[int, typer.Option(min=1)] = 16,
    output_tokens: Annotated[int, typer.Option(min=3)] = 32,
    kv_memory: Annotated[str, typer.Option(help="Keys and values of each replica.")] = "1GiB",
    threads: Annotated[int | None, typer.Option(help="Default: all cores.")] = None,
    patience: Annotated[float, typer.Option(help="Seconds to wait for a quiet machine.")] = 30.0,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")] = False,
    output: Annotated[Path | None, typer.Option(help="Append raw runs as JSON lines.")] = None,
) -> None:
    """Time to the first forward of a replica that maps its weights, and the memory of two."""
    models.mkdir(parents=True, exist_ok=True)
    directory = model or str(qwen_directory(models))
    sizes, report = Sizes(prompt_tokens, output_tokens), Report(output)
    with ExitStack() as stack:
        made = stack.enter_context(tempfile.TemporaryDirectory(prefix="store-", dir=models))
        root = Path(made).resolve()
        values: dict[str, Any] = {
            "model": directory,
            "num_threads": threads,
            "cache": {"memory": kv_memory},
            "weight_store": {"directory": str(root)},
        }
        mapped = EngineConfig.model_validate(values)
        private = EngineConfig.model_validate(values | {"weight_store": {"enable": False}})
        starts = Starts(
            stack.enter_context(started(mapped, sizes)),
            stack.enter_context(started(private, sizes)),
            lambda: started(mapped, sizes),
            root,
        )
        loads = starts.load()
        report.run(model=directory, **loads)
        found: dict[str, list[float]] = {name: [value] for name, value in loads.items()}
        for number in range(repetitions):
            with quiet(list, patience) as contention:
                figures = starts.repetition()
            report.run(model=directory, repetition=number, **figures)
            say(f"{number + 1}/{repetitions}  waited {contention.waited_s} s  {_line(figures)}")
            for name, value in figures.items():
                found.setdefault(name, []).append(value)
    for name, collected in found.items():
        report.add(name, collected)
    report.show(as_json=as_json)


def _line(figures: dict[str, float]) -> str:
    return "  ".join(f"{name} {short(figures[name])}" for name in FIGURES)


if __name__ == "__main__":
    run(main)
