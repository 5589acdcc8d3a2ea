"""One contract for all backends."""

import os
from collections.abc import Sequence
from multiprocessing.connection import Connection
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from rtp_serve.clock import WallClock
from rtp_serve.parallel.collectives import Alone, Collectives
from tests.parallel.ranks import (
    BACKENDS,
    PROCESS_BACKENDS,
    SLOT_BYTES,
    Meeting,
    Ranks,
    run_ranks,
)

Operation = tuple[str, tuple[int, ...], torch.dtype, int]
"""Name, shape, dtype and the seed of its data."""

SHAPES = [(), (1,), (17,), (3, 5), (0, 4), (SLOT_BYTES // 2,), (SLOT_BYTES // 4 + 1, 3)]


@pytest.fixture(autouse=True)
def _leaves_no_shared_memory():
    yield
    assert not list(Path("/dev/shm").glob(f"rtp_serve-test-{os.getpid()}-*"))


def data(rank: int, shape: tuple[int, ...], dtype: torch.dtype, seed: int) -> Tensor:
    """Of very different sizes, so that another order of adding gives another sum."""
    generator = torch.Generator().manual_seed(1000 * seed + rank)
    exponent = torch.randint(-12, 12, shape, generator=generator)
    return (torch.randn(shape, generator=generator) * 2.0**exponent).to(dtype)


def expected_sum(world_size: int, *what: object) -> Tensor:
    parts = [data(rank, *what) for rank in range(world_size)]  # type: ignore[arg-type]
    total = parts[0].float()
    for part in parts[1:]:
        total = total + part.float()
    return total.to(parts[0].dtype)


def counts_of(rank: int, world_size: int, num_rows: int) -> list[int]:
    generator = torch.Generator().manual_seed(97 * num_rows + rank)
    counts = torch.randint(0, num_rows + 1, (world_size,), generator=generator)
    return [int(count) for count in counts]


def same_bits(one: Tensor, other: Tensor) -> bool:
    words = {2: torch.int16, 4: torch.int32, 8: torch.int64}[one.element_size()]
    return one.shape == other.shape and torch.equal(one.view(words), other.view(words))


def check_all_reduce(collectives: Collectives, *what: object) -> None:
    x = data(collectives.rank, *what)  # type: ignore[arg-type]
    collectives.all_reduce(x)
    assert same_bits(x, expected_sum(collectives.world_size, *what))


def check_all_gather(collectives: Collectives, *what: object) -> None:
    out = collectives.all_gather(data(collectives.rank, *what))  # type: ignore[arg-type]
    parts = [data(rank, *what) for rank in range(collectives.world_size)]  # type: ignore[arg-type]
    assert same_bits(out, torch.stack(parts))


def check_broadcast(collectives: Collectives, *what: object) -> None:
    for root in range(collectives.world_size):
        x = data(collectives.rank, *what)  # type: ignore[arg-type]
        collectives.broadcast(x, root)
        assert same_bits(x, data(root, *what))  # type: ignore[arg-type]


def check_all_to_all(
    collectives: Collectives, shape: tuple[int, ...], dtype: torch.dtype, seed: int
) -> None:
    num_rows, width = (*shape, 1, 1)[:2]
    world_size, own = collectives.world_size, collectives.rank

    def sent(rank: int) -> Sequence[Tensor]:
        counts = counts_of(rank, world_size, num_rows)
        return data(rank, (sum(counts), width), dtype, seed).split(counts)

    counts = counts_of(own, world_size, num_rows)
    rows, came = collectives.all_to_all(torch.cat(list(sent(own))), counts)
    assert came == [counts_of(rank, world_size, num_rows)[own] for rank in range(world_size)]
    assert same_bits(rows, torch.cat([sent(rank)[own] for rank in range(world_size)]))


CHECKS = {
    "all_reduce": check_all_reduce,
    "all_gather": check_all_gather,
    "broadcast": check_broadcast,
    "all_to_all": check_all_to_all,
}


def check_program(
    collectives: Collectives, line: Connection | None, program: list[Operation]
) -> None:
    for name, *what in program:
        CHECKS[name](collectives, *what)
        collectives.barrier()


def check_ranks(collectives: Collectives, line: Connection) -> tuple[int, int]:
    collectives.barrier()
    return collectives.rank, collectives.world_size


@pytest.mark.parametrize("world_size", [2, 3, 4])
@pytest.mark.parametrize("backend", BACKENDS)
def test_every_operation_gives_the_same_bits_as_one_process(backend: str, world_size: int):
    program = [
        (name, shape, dtype, seed)
        for seed, shape in enumerate(SHAPES)
        for dtype in (torch.float32, torch.bfloat16)
        for name in CHECKS
    ]
    run_ranks(Meeting(backend, world_size), check_program, program)


operations = st.tuples(
    st.sampled_from(sorted(CHECKS)),
    st.lists(st.integers(0, 40), max_size=3).map(tuple),
    st.sampled_from([torch.float32, torch.bfloat16]),
    st.integers(0, 99),
)


@pytest.mark.parametrize("backend", BACKENDS)
@settings(max_examples=4, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(program=st.lists(operations, max_size=12), world_size=st.integers(2, 4))
def test_any_sequence_of_operations(backend: str, program: list[Operation], world_size: int):
    run_ranks(Meeting(backend, world_size), check_program, program)


@pytest.mark.parametrize("backend", BACKENDS)
def test_ranks_are_who_they_are(backend: str):
    assert run_ranks(Meeting(backend, 3), check_ranks) == [(0, 3), (1, 3), (2, 3)]


def test_one_rank_needs_nobody():
    check_program(Alone(), None, [(name, (3, 2), torch.bfloat16, 1) for name in CHECKS])


def wait_or_abort(collectives: Collectives, line: Connection) -> None:
    collectives.barrier()
    if collectives.rank == 1:
        collectives.abort()
    while True:
        collectives.all_reduce(torch.ones(5))


@pytest.mark.parametrize("backend", BACKENDS)
def test_an_abort_of_one_rank_ends_all(backend: str):
    with Ranks(Meeting(backend, 3), wait_or_abort) as ranks:
        outcomes = ranks.outcomes()
    assert [outcome.error for outcome in outcomes] == ["RanksAborted"] * 3
    assert [outcome.error_rank for outcome in outcomes] == [1] * 3


def fail_or_wait(collectives: Collectives, line: Connection) -> None:
    collectives.barrier()
    if collectives.rank == 1:
        raise ZeroDivisionError  # and close
    collectives.all_reduce(torch.ones(5))


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_rank_that_leaves_is_lost_to_the_others(backend: str):
    with Ranks(Meeting(backend, 3), fail_or_wait) as ranks:
        outcomes = ranks.outcomes()
    assert "ZeroDivisionError" in outcomes[1].trace
    for rank in (0, 2):
        assert (outcomes[rank].error, outcomes[rank].error_rank) == ("RankLost", 1)


def stay_away(collectives: Collectives, line: Connection) -> None:
    collectives.barrier()
    if collectives.rank == 0:
        collectives.barrier()
    line.recv()


@pytest.mark.parametrize(
    ("backend", "timeout_s"), [("in_process", 0.2), ("shared_memory", 4), ("gloo", 4)]
)
def test_nobody_waits_for_ever(backend: str, timeout_s: float):
    """Rank 1 lives, and does not come before rank 0 has given up. Both have joined in time."""
    with Ranks(Meeting(backend, 2, timeout_s=timeout_s), stay_away) as ranks:
        outcome = ranks.outcome(0)
        ranks.tell(1)
    assert outcome.error == "RankLate"
    assert outcome.error_rank in (1, None)


def reduce_for_ever(collectives: Collectives, line: Connection) -> None:
    collectives.barrier()
    line.send("begins")
    x = torch.ones(64 * SLOT_BYTES)
    while True:
        collectives.all_reduce(x)


@pytest.mark.parametrize("victim", [0, 1])
@pytest.mark.parametrize("backend", PROCESS_BACKENDS)
def test_a_killed_rank_is_noticed_by_all_others(backend: str, victim: int):
    with Ranks(Meeting(backend, 3), reduce_for_ever) as ranks:
        for rank in range(3):
            assert ranks.hear(rank) == "begins"
        killed_s = WallClock().monotonic()
        ranks.processes[victim].kill()
        for rank in {0, 1, 2} - {victim}:
            outcome = ranks.outcome(rank)
            assert (outcome.error, outcome.error_rank) == ("RankLost", victim), outcome.trace
            assert outcome.at_s - killed_s < 2
