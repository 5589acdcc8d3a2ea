"""Processes for ranks that a measurement starts."""

import multiprocessing
import os
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

_PATIENCE_S = 120


def run_processes(count: int, body: Callable[..., Any], *args: Any) -> list[Any]:
    """Call body(index, *args) in `count` processes at once; what they return."""
    context = multiprocessing.get_context("spawn")
    ends: list[Connection] = []
    processes = []
    for index in range(count):
        ours, theirs = context.Pipe()
        ends.append(ours)
        process = context.Process(target=_run, args=(theirs, body, index, args), daemon=True)
        process.start()
        processes.append(process)
        theirs.close()
    try:
        return [_hear(end) for end in ends]
    finally:
        for process in processes:
            process.kill()
            process.join()


def unique_name(purpose: str) -> str:
    """For shared memory of this process's ranks."""
    return f"{purpose}-{os.getpid()}-{os.urandom(4).hex()}"


def _run(end: Connection, body: Callable[..., Any], index: int, args: tuple[Any, ...]) -> None:
    end.send(body(index, *args))


def _hear(end: Connection) -> Any:
    if not end.poll(_PATIENCE_S):
        raise TimeoutError("a rank says nothing")
    return end.recv()
