"""What the ranks of a model do together, whatever carries it.

All ranks call the same methods in the same order, with equal shapes and dtypes, each from one
thread at a time. Sums are in float32 and in rank order, rounded once: their bits depend neither on
timing nor on the backend.

A rank that dies, leaves, aborts or does not come in time ends the group: whatever waits, on every
rank, raises a RankError (RankLost, RankLate, RanksAborted, ChannelClosed), and so does everything
afterwards. What an operation that failed was to write is undefined.
"""

from collections.abc import Sequence
from typing import Protocol

from rtp_serve.ops.host_array import dtype_name
from rtp_serve.ops.tensor import Tensor

SUMMED_DTYPES = ("float32", "bfloat16")


class Collectives(Protocol):
    """One rank's part in a group. Tensors are contiguous and on the backend's device."""

    @property
    def rank(self) -> int: ...

    @property
    def world_size(self) -> int: ...

    def all_reduce(self, x: Tensor) -> None:
        """x, float32 or bfloat16, becomes the sum of all ranks' x."""
        ...

    def all_gather(self, x: Tensor) -> Tensor:
        """→ [world_size, *x.shape]: every rank's x."""
        ...

    def broadcast(self, x: Tensor, root: int) -> None:
        """x becomes that of rank `root`."""
        ...

    def all_to_all(self, rows: Tensor, counts: Sequence[int]) -> tuple[Tensor, list[int]]:
        """rows [n, d] sorted by the rank they go to, counts [world_size] to each, n in all → the
        rows that came for this rank [m, d], in rank order, and how many from each."""
        ...

    def barrier(self) -> None:
        """Wait for all ranks to come here."""
        ...

    def abort(self) -> None:
        """End the group for all ranks; who waits is woken. Any thread, any time."""
        ...

    def close(self) -> None:
        """Take no further part and release everything; others lose this rank where they wait for
        it. Any thread, any time, more than once."""
        ...


class Alone:
    """A group of one."""

    rank = 0
    world_size = 1

    def all_reduce(self, x: Tensor) -> None:
        check_sum(x)

    def all_gather(self, x: Tensor) -> Tensor:
        check(x)
        return x.clone().unsqueeze(0)

    def broadcast(self, x: Tensor, root: int) -> None:
        check(x)
        assert root == 0, f"root {root} of 1 rank"

    def all_to_all(self, rows: Tensor, counts: Sequence[int]) -> tuple[Tensor, list[int]]:
        check_rows(rows, counts, 1)
        return rows.clone(), list(counts)

    def barrier(self) -> None:
        """Everybody is here."""

    def abort(self) -> None:
        """Nobody waits."""

    def close(self) -> None:
        """Nothing is held."""


def sum_in_rank_order(gathered: Tensor, out: Tensor) -> None:
    """gathered [world_size, *out.shape] → out, added in float32 and rounded once."""
    total = gathered[0].float()
    for part in gathered[1:]:
        total = total + part
    out.copy_(total)


def check(x: Tensor) -> None:
    assert x.is_contiguous(), f"a tensor of strides {x.stride()} is not contiguous"


def check_sum(x: Tensor) -> None:
    check(x)
    assert dtype_name(x.dtype) in SUMMED_DTYPES, f"no sums of {x.dtype}"


def check_rows(rows: Tensor, counts: Sequence[int], world_size: int) -> None:
    check(rows)
    assert rows.dim() == 2, f"rows of shape {tuple(rows.shape)}"
    assert len(counts) == world_size, f"{len(counts)} counts for {world_size} ranks"
    assert sum(counts) == len(rows), f"{list(counts)} are not {len(rows)} rows"
