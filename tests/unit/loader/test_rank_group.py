"""Ranks that read together: each file once, to all of them; an error of one is an error of all."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from rtp_serve.clock import VirtualClock
from rtp_serve.errors import CheckpointError
from rtp_serve.loader.load_figures import LoadTimer
from rtp_serve.loader.rank_group import RankGroup, hull
from rtp_serve.loader.read_plan import ALIGNMENT, Read, ReadSizes, TensorRows, plan_reads
from rtp_serve.loader.reader import run_reads
from rtp_serve.loader.safetensors_header import StoredTensor

FILES = [Path(f"model-{number}") for number in range(5)]
PAGES = 3
TENSORS = {
    file.name: StoredTensor(file.name, file, "U8", (PAGES * ALIGNMENT,), 0, PAGES * ALIGNMENT)
    for file in FILES
}


class Rank:
    """Reads its files and takes what all ranks read."""

    def __init__(self, group: RankGroup, rank: int, broken_file: str = "") -> None:
        self.read: list[str] = []
        self.taken: list[tuple[str, int, int]] = []
        self._group, self._rank, self._broken_file = group, rank, broken_file
        self._lock = threading.Lock()

    def load(self) -> None:
        with self._group.member(self._rank):
            wanted = dict.fromkeys(TENSORS, (0, PAGES * ALIGNMENT))
            rows = self._group.join(self._rank, wanted, self._take)
            plan = plan_reads(
                [TensorRows(TENSORS[name], *rows[name]) for name in rows], ReadSizes(ALIGNMENT)
            )
            own = self._group.own(self._rank, plan)
            timer = LoadTimer(VirtualClock())
            list(run_reads(own, self._read, self._group.deliver, 2, timer))
            self._group.meet()

    def _read(self, file: Path, offset: int, into: memoryview) -> int:
        if file.name == self._broken_file:
            raise OSError(5, "Input/output error")
        with self._lock:
            self.read.append(file.name)
        into[:] = bytes([offset // ALIGNMENT + 1]) * len(into)
        return len(into)

    def _take(self, read: Read, data: memoryview) -> None:
        with self._lock:
            self.taken.append((read.file.name, read.offset // ALIGNMENT + 1, data[-1]))


def run(works: list[Callable[[], None]]) -> list[BaseException | None]:
    """All at once, each in its thread; what each of them raised."""
    with ThreadPoolExecutor(len(works)) as pool:
        return [each.exception(timeout=60) for each in [pool.submit(work) for work in works]]


@pytest.mark.parametrize("world_size", [1, 2, 4, 8])
def test_each_file_is_read_by_one_rank_and_given_to_all(world_size: int):
    group = RankGroup(world_size)
    ranks = [Rank(group, rank) for rank in range(world_size)]
    assert run([rank.load for rank in ranks]) == [None] * world_size
    for number, rank in enumerate(ranks):
        assert sorted(rank.read) == sorted(
            file.name for file in FILES[number::world_size] for _ in range(PAGES)
        )
        assert sorted(rank.taken) == [
            (file.name, page, page) for file in FILES for page in range(1, PAGES + 1)
        ]


@pytest.mark.parametrize("broken", FILES)
def test_a_file_that_one_rank_cannot_read_is_one_error_of_all(broken: Path):
    group = RankGroup(4)
    ranks = [Rank(group, rank, broken.name) for rank in range(4)]
    reader = FILES.index(broken) % 4
    for rank, error in enumerate(run([rank.load for rank in ranks])):
        assert isinstance(error, CheckpointError)
        assert f"cannot read {broken}: " in str(error)
        assert (f"rank {reader} could not load its files" in str(error)) == (rank != reader)


def test_a_rank_that_fails_before_it_meets_the_others_wakes_them():
    group = RankGroup(3)

    def fail() -> None:
        with group.member(1):
            raise CheckpointError("model.norm.weight is missing")

    errors = run([Rank(group, 0).load, fail, Rank(group, 2).load])
    assert all(isinstance(error, CheckpointError) for error in errors)
    assert [str(error).startswith("rank 1 could not") for error in errors] == [True, False, True]


def test_what_is_read_is_what_any_rank_wants():
    wanted = [{"a": (0, 4), "b": (2, 3)}, {"a": (4, 8)}, {"b": (0, 1), "c": (5, 6)}]
    assert hull(wanted) == {"a": (0, 8), "b": (0, 3), "c": (5, 6)}
    assert hull([]) == {}


def test_the_first_error_is_the_one_that_is_told():
    group = RankGroup(2)
    group.fail(1, OSError("first"))
    group.fail(0, OSError("second"))
    for action in (group.check, group.meet):
        with pytest.raises(CheckpointError, match="rank 1 could not load its files: first"):
            action()
