"""Ranks for tests: threads, or processes of their own, that run the same function together."""

import itertools
import multiprocessing
import os
import threading
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any

import torch

from rtp_serve.clock import WallClock
from rtp_serve.errors import RankError
from rtp_serve.native.rank_group import RankGroup
from rtp_serve.parallel.collectives import Collectives
from rtp_serve.parallel.gloo import gloo, reach_store, serve_store
from rtp_serve.parallel.in_process import InProcessGroup
from rtp_serve.parallel.shared_memory import SharedMemory

Body = Callable[..., Any]
"""Called with a rank's collectives, its line to the test, and arguments."""

PROCESS_BACKENDS = ("shared_memory", "gloo")
BACKENDS = ("in_process", *PROCESS_BACKENDS)
SLOT_BYTES = 4096
"""Small, so that most tensors go in pieces."""

_WAIT_S = 60
_numbers = itertools.count()


@dataclass(frozen=True)
class Outcome:
    """How a rank ended: its body's result, a RankError, or a traceback."""

    result: Any = None
    error: str = ""
    error_rank: int | None = None
    at_s: float = 0.0
    trace: str = ""


@dataclass
class Meeting:
    """All that a rank must know to join."""

    backend: str
    world_size: int
    timeout_s: float = 20.0
    name: str = field(default_factory=lambda: f"test-{os.getpid()}-{next(_numbers)}")
    port: int = 0
    """Of the store, under gloo."""

    def join(self, rank: int) -> Collectives:
        if self.backend == "gloo":
            store = reach_store("127.0.0.1", self.port, self.timeout_s)
            return gloo(store, rank, self.world_size, address="127.0.0.1", timeout_s=self.timeout_s)
        assert self.backend == "shared_memory"
        return SharedMemory(
            RankGroup(
                self.name, rank, self.world_size, slot_bytes=SLOT_BYTES, timeout_s=self.timeout_s
            )
        )


class Ranks:
    """Started ranks; as a context manager it leaves none behind."""

    def __init__(self, meeting: Meeting, body: Body, *args: Any) -> None:
        self._store = serve_store("127.0.0.1") if meeting.backend == "gloo" else None
        if self._store is not None:
            meeting = replace(meeting, port=self._store.port)
        self.meeting = meeting
        self._ends: list[Connection] = []
        self._threads: list[threading.Thread] = []
        self.processes: list[BaseProcess] = []
        if meeting.backend == "in_process":
            self._start_threads(body, args)
        else:
            self._start_processes(body, args)

    def __enter__(self) -> "Ranks":
        return self

    def __exit__(self, *_: object) -> None:
        for process in self.processes:
            process.kill()
            process.join()
        for thread in self._threads:
            thread.join()

    def tell(self, rank: int) -> None:
        """Something, to a rank that listens."""
        self._ends[rank].send(None)

    def hear(self, rank: int) -> Any:
        """What the rank says next: told things, and at last its Outcome."""
        assert self._ends[rank].poll(_WAIT_S), f"rank {rank} says nothing"
        return self._ends[rank].recv()

    def outcome(self, rank: int) -> Outcome:
        """Passes over what else the rank has told."""
        while not isinstance(said := self.hear(rank), Outcome):
            pass
        return said

    def outcomes(self) -> list[Outcome]:
        return [self.outcome(rank) for rank in range(self.meeting.world_size)]

    def _start_threads(self, body: Body, args: tuple[Any, ...]) -> None:
        group = InProcessGroup(self.meeting.world_size, self.meeting.timeout_s)
        for rank in range(self.meeting.world_size):
            ours, theirs = multiprocessing.Pipe()
            self._ends.append(ours)
            arguments = (theirs, group.member, rank, body, args)
            self._threads.append(threading.Thread(target=_run_rank, args=arguments))
            self._threads[-1].start()

    def _start_processes(self, body: Body, args: tuple[Any, ...]) -> None:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload([__name__])
        for rank in range(self.meeting.world_size):
            ours, theirs = context.Pipe()
            self._ends.append(ours)
            arguments = (theirs, self.meeting.join, rank, body, args)
            process = context.Process(target=_run_rank, args=arguments, daemon=True)
            process.start()
            self.processes.append(process)


def run_ranks(meeting: Meeting, body: Body, *args: Any) -> list[Any]:
    """Results of all ranks, none of which has failed."""
    with Ranks(meeting, body, *args) as ranks:
        outcomes = ranks.outcomes()
    for rank, outcome in enumerate(outcomes):
        assert not outcome.trace, f"rank {rank}:\n{outcome.trace}"
    return [outcome.result for outcome in outcomes]


def _run_rank(
    end: Connection,
    join: Callable[[int], Collectives],
    rank: int,
    body: Body,
    args: tuple[Any, ...],
) -> None:
    torch.set_num_threads(1)
    collectives = None
    try:
        collectives = join(rank)
        end.send(Outcome(body(collectives, end, *args)))
    except RankError as error:
        now_s = WallClock().monotonic()
        name = type(error).__name__
        end.send(Outcome(None, name, error.rank, now_s, traceback.format_exc()))
    except Exception:
        end.send(Outcome(trace=traceback.format_exc()))
    finally:
        if collectives is not None:
            collectives.close()
