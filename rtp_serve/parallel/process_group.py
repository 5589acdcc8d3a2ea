"""Collectives of torch's process groups: gloo's and NCCL's look the same from here.

torch's own sums have an order that depends on algorithm and size, so ranks gather and each adds by
itself. The store that the group met at also carries what torch does not say: who has ended it.
"""

from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import timedelta
from typing import Any, TypeAlias

import torch
import torch.distributed as dist

from rtp_serve.clock import Clock, WallClock
from rtp_serve.errors import ChannelClosed, RankError, RankLate, RankLost, RanksAborted
from rtp_serve.ops.tensor import Tensor
from rtp_serve.parallel.collectives import check, check_rows, check_sum, sum_in_rank_order

Backend: TypeAlias = Any
"""A torch.distributed.Backend; torch's annotations lack its methods."""

Store: TypeAlias = Any
"""A torch.distributed.Store, likewise."""

LOOK = timedelta(milliseconds=100)
_ANSWER = timedelta(seconds=1)
_ABORTED_BY, _LOST, _ASKED = "aborted_by", "lost", "asked"

Wait = Callable[[dist.Work], bool]
"""Wait for an operation for a moment; whether it is done. Raises RuntimeError if it has failed."""


def wait_on_cpu(work: dist.Work) -> bool:
    """For operations that are over when they are done."""
    try:
        work.wait(LOOK)
    except RuntimeError:
        if work.is_completed():
            raise
        return False
    return True


class ProcessGroup:
    """Collectives over a group of torch's, which it owns from now on."""

    def __init__(
        self,
        group: Backend,
        store: Store,
        *,
        timeout_s: float,
        wait: Wait = wait_on_cpu,
        clock: Clock | None = None,
    ) -> None:
        self.rank = group.rank()
        self.world_size = group.size()
        self._group: Backend | None = group
        self._store = store
        self._timeout_s = timeout_s
        self._poll = wait
        self._clock = clock or WallClock()
        self._error: RankError | None = None

    def all_reduce(self, x: Tensor) -> None:
        check_sum(x)
        sum_in_rank_order(self.all_gather(x), x)

    def all_gather(self, x: Tensor) -> Tensor:
        check(x)
        out = x.new_empty((self.world_size, *x.shape))
        if x.numel():
            self._run(lambda group: group.allgather([list(out.unbind())], [x]))
        return out

    def broadcast(self, x: Tensor, root: int) -> None:
        check(x)
        if x.numel():
            self._run(lambda group: group.broadcast(x, root))

    def all_to_all(self, rows: Tensor, counts: Sequence[int]) -> tuple[Tensor, list[int]]:
        check_rows(rows, counts, self.world_size)
        sent = list(counts)
        table = self.all_gather(torch.tensor(sent, dtype=torch.int64, device=rows.device))
        came = [int(count) for count in table[:, self.rank]]
        out = rows.new_empty((sum(came), rows.shape[1]))
        if int(table.sum()):
            self._run(lambda group: group.alltoall_base(out, rows, came, sent))
        return out, came

    def barrier(self) -> None:
        self._run(lambda group: group.barrier())

    def abort(self) -> None:
        self._error = self._error or _aborted(self.rank)
        with suppress(RuntimeError):  # the store went with its process
            self._store.set(_ABORTED_BY, str(self.rank))

    def close(self) -> None:
        self._group = None

    def _run(self, start: Callable[[Backend], dist.Work]) -> None:
        group = self._group
        if group is None:
            raise ChannelClosed(f"rank {self.rank} has closed", self.rank)
        if self._error is not None:
            raise type(self._error)(self._error.message, self._error.rank)
        try:
            self._wait(start(group))
        except RankError as error:
            self._error = error
            raise
        except RuntimeError as error:
            self._error = self._cause()
            raise self._error from error

    def _wait(self, work: dist.Work) -> None:
        deadline_s = self._clock.monotonic() + self._timeout_s
        while not self._poll(work):
            if self._group is None:
                raise ChannelClosed(f"rank {self.rank} has closed", self.rank)
            if self._error is not None:
                raise self._error
            try:
                self._look()
            except RuntimeError:
                raise _store_lost() from None
            if self._clock.monotonic() >= deadline_s:
                raise RankLate("some rank did not come in time")

    def _look(self) -> None:
        """What others have said about the group."""
        for key, kind in ((_ABORTED_BY, _aborted), (_LOST, _lost)):
            if self._store.check([key]):
                raise kind(int(self._store.get(key)))
        if self._store.check([_ASKED]):
            self._store.set(_answer(self.rank), "")

    def _cause(self) -> RankError:
        """Why an operation has failed: whoever lives and waits too answers."""
        try:
            self._look()
            self._store.set(_answer(self.rank), "")
            self._store.set(_ASKED, "")
            with suppress(RuntimeError):  # not all in time
                self._store.wait([_answer(rank) for rank in range(self.world_size)], _ANSWER)
            for rank in range(self.world_size):
                if not self._store.check([_answer(rank)]):
                    self._store.set(_LOST, str(rank))
                    return _lost(rank)
        except RankError as error:
            return error
        except RuntimeError:
            return _store_lost()
        return RankLost("the connection to some rank is lost")


def _store_lost() -> RankError:
    return RankLost("the store at which the ranks met is gone")


def _answer(rank: int) -> str:
    return f"answer/{rank}"


def _lost(rank: int) -> RankError:
    return RankLost(f"rank {rank} has died or left", rank)


def _aborted(rank: int) -> RankError:
    return RanksAborted(f"rank {rank} has ended the work of all ranks", rank)
