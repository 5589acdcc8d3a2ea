"""Loading a checkpoint of several files: ours beside other loaders and the disk's own rate.

In a repetition every method runs once, in an order of its own, each in a fresh process: cold, with
the files dropped from the page cache before each run, then warm. A figure is made of the runs of
one repetition, and is their median over the repetitions. `benchmarks/throttled.py` adds a store far
away, with several ranks.
"""

import json
import os
import random
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import typer

from benchmarks.command import run
from benchmarks.loaders import (
    HUGE_RAW,
    RAW,
    SAFE_OPEN,
    US,
    Loader,
    Stored,
    loaders,
    raw_loaders,
)
from benchmarks.mappings import MAPPED, STORE, mappings
from benchmarks.peers import chosen, peers_directory
from benchmarks.report import Report, say
from benchmarks.samples import short
from benchmarks.sharded import SHAPES, sharded_checkpoint
from benchmarks.throttled import FIGURES as THROTTLED_FIGURES
from benchmarks.throttled import Rate, throttled_loaders, throttled_ratios
from rtp_serve.errors import RtpServeError

FIGURES = (
    "cold_fraction_of_raw_read",
    "cold_fraction_of_huge_raw_read",
    "cold_x_safe_open",
    "cold_x_best_peer",
    "warm_x_best_peer",
    "store_x_load_file",
    *THROTTLED_FIGURES,
)
"""Of these `docs/loading.md` says what they should be; seconds of each method stand beside them."""

Seconds = Mapping[str, float]
"""Method → time, of one repetition."""


class MethodFailed(RtpServeError):
    """A loader's process ended without a result."""


def ratios(cold: Seconds, warm: Seconds) -> dict[str, float]:
    """Their time over ours: above 1 we are faster."""
    found = {
        f"cold_fraction_of_{kind}read": min(times) / cold[US]
        for kind in (RAW, HUGE_RAW)
        if (times := [seconds for name, seconds in cold.items() if name.startswith(kind)])
    }
    if SAFE_OPEN in cold:
        found["cold_x_safe_open"] = cold[SAFE_OPEN] / cold[US]
    for kind, seconds in (("cold", cold), ("warm", warm)):
        peers = [seconds[name] for name in seconds if name != US and not _is_raw(name)]
        if peers:
            found[f"{kind}_x_best_peer"] = min(peers) / seconds[US]
    return found


def _is_raw(name: str) -> bool:
    return name.startswith((RAW, HUGE_RAW))


def seconds_in_fresh_process(loader: Loader, stored: Stored) -> float:
    """Of one load. Fork is quick and leaves nothing behind: the memory of one run is not there for
    the next. This process must not have started threads."""
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        os.close(reader)
        started_s = time.perf_counter()
        kept = loader(stored)
        seconds = time.perf_counter() - started_s
        os.write(writer, json.dumps(seconds).encode())
        os._exit(0 if kept is not None else 1)
    os.close(writer)
    with os.fdopen(reader) as pipe:
        said = pipe.read()
    _, status = os.waitpid(child, 0)
    if status or not said:
        raise MethodFailed(f"{loader.__name__} ended with status {status}")
    return float(json.loads(said))


def repetition(
    methods: Mapping[str, Loader], stored: Stored, order: random.Random
) -> list[Seconds]:
    """Every method once cold and, but for raw reads, once warm."""
    names = list(methods)
    order.shuffle(names)
    cold, warm = {}, {}
    for name in names:
        stored.drop_from_cache()
        cold[name] = seconds_in_fresh_process(methods[name], stored)
    stored.bring_to_cache()
    for name in names:
        if not _is_raw(name):
            warm[name] = seconds_in_fresh_process(methods[name], stored)
    return [cold, warm]


def mapped_repetition(
    methods: Mapping[str, Loader], stored: Stored, order: random.Random
) -> Seconds:
    """Every mapping once, of pages that are cached: a run that does not count saw to that."""
    names = list(methods)
    order.shuffle(names)
    for name in names:
        seconds_in_fresh_process(methods[name], stored)
    return {name: seconds_in_fresh_process(methods[name], stored) for name in names}


def throttled_repetition(stored: Stored, order: random.Random) -> Seconds:
    """Every method of the throttled store once."""
    methods = throttled_loaders(Rate())
    names = list(methods)
    order.shuffle(names)
    return {name: seconds_in_fresh_process(methods[name], stored) for name in names}


def main(  # noqa: PLR0913  # a command's options
    shape: Annotated[str, typer.Option(help=f"One of {', '.join(SHAPES)}.")] = "2gb",
    throttled_shape: Annotated[str, typer.Option(help="From the throttled store.")] = "100mb",
    files: Annotated[int, typer.Option(min=1)] = 4,
    repetitions: Annotated[int, typer.Option(min=1)] = 5,
    only: Annotated[str, typer.Option(help="Methods beside ours, a comma list.")] = "",
    seed: Annotated[int, typer.Option(help="Of the order.")] = 1,
    parent: Annotated[Path | None, typer.Option(help="Where the checkpoint is kept.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")] = False,
    output: Annotated[Path | None, typer.Option(help="Append raw runs as JSON lines.")] = None,
) -> None:
    """How long a checkpoint takes to load."""
    chosen(shape, tuple(SHAPES), "--shape")
    chosen(throttled_shape, tuple(SHAPES), "--throttled-shape")
    available = loaders() | raw_loaders()
    names = {US, *(chosen(only, tuple(available), "--only") or available)}
    methods = {name: loader for name, loader in available.items() if name in names}
    parent = parent or peers_directory()
    stored = Stored.of(sharded_checkpoint(parent, shape, files))
    far = Stored.of(sharded_checkpoint(parent, throttled_shape, files))
    mapped_methods = mappings(parent / "loading-store")
    seconds_in_fresh_process(mapped_methods[STORE], stored)
    report, order = Report(output), random.Random(seed)
    found: dict[str, list[float]] = {}
    for number in range(repetitions):
        cold, warm = repetition(methods, stored, order)
        mapped = mapped_repetition(mapped_methods, stored, order)
        throttled = throttled_repetition(far, order)
        report.run(repetition=number, cold=cold, warm=warm, mapped=mapped, throttled=throttled)
        say(f"{number + 1}/{repetitions}  cold {_line(cold)}  warm {_line({**warm, **mapped})}")
        say(f"  {_line(throttled)}")
        figures = ratios(cold, warm) | throttled_ratios(throttled)
        figures["store_x_load_file"] = mapped[MAPPED] / mapped[STORE]
        figures |= {f"{name}_s": seconds for name, seconds in mapped.items()}
        figures |= {f"cold_{name}_s": seconds for name, seconds in cold.items()}
        figures |= {f"warm_{name}_s": seconds for name, seconds in warm.items()}
        figures |= {f"{name}_s": seconds for name, seconds in throttled.items()}
        for name, value in figures.items():
            found.setdefault(name, []).append(value)
    for name in (*FIGURES, *sorted(found.keys() - set(FIGURES))):
        report.add(name, found.get(name, []))
    report.show(as_json=as_json)


def _line(seconds: Seconds) -> str:
    return " ".join(f"{name} {short(value)}" for name, value in sorted(seconds.items()))


if __name__ == "__main__":
    run(main)
