"""Ranks that are threads of one process, for tests: what one posts the others see."""

import threading
from collections import defaultdict
from collections.abc import Sequence

import torch

from rtp_serve.errors import ChannelClosed, RankError, RankLate, RankLost, RanksAborted
from rtp_serve.ops.tensor import Tensor
from rtp_serve.parallel.collectives import check, check_rows, check_sum, sum_in_rank_order


class InProcessGroup:
    """Made once; every rank takes its own member to its own thread."""

    def __init__(self, world_size: int, timeout_s: float = 60.0) -> None:
        assert world_size > 0, f"{world_size} ranks"
        self.world_size = world_size
        self._timeout_s = timeout_s
        self._changed = threading.Condition()
        # by round: what ranks have posted; removed when all have taken it
        self._posted: dict[int, dict[int, list[Tensor]]] = defaultdict(dict)
        self._num_taken: dict[int, int] = defaultdict(int)
        self._left: set[int] = set()
        self._error: RankError | None = None

    def member(self, rank: int) -> "InProcess":
        assert 0 <= rank < self.world_size, f"rank {rank} of {self.world_size}"
        return InProcess(self, rank)

    def exchange(self, rank: int, number: int, tensors: list[Tensor]) -> list[list[Tensor]]:
        """Post to round `number` and wait for everybody's, in rank order. Nobody may write to what
        is posted or taken."""
        with self._changed:
            self._check(rank)
            posted = self._posted[number]
            posted[rank] = tensors
            self._changed.notify_all()
            is_over = self._changed.wait_for(
                lambda: len(posted) == self.world_size or self._is_hopeless(rank, posted),
                self._timeout_s,
            )
            if len(posted) < self.world_size:
                missing = sorted(set(range(self.world_size)) - posted.keys())
                self._fail(rank, missing, is_over)
            self._num_taken[number] += 1
            if self._num_taken[number] == self.world_size:
                del self._posted[number], self._num_taken[number]
            return [posted[each] for each in range(self.world_size)]

    def abort(self, rank: int) -> None:
        with self._changed:
            self._end(RanksAborted(f"rank {rank} has ended the work of all ranks", rank))

    def leave(self, rank: int) -> None:
        with self._changed:
            self._left.add(rank)
            self._changed.notify_all()

    def _is_hopeless(self, rank: int, posted: dict[int, list[Tensor]]) -> bool:
        return self._error is not None or rank in self._left or bool(self._left - posted.keys())

    def _fail(self, rank: int, missing: list[int], is_over: bool) -> None:
        self._check(rank)
        for other in missing:
            if other in self._left:
                self._end(RankLost(f"rank {other} has died or left", other))
        if not is_over:
            self._end(RankLate(f"rank {missing[0]} did not come in time", missing[0]))
        self._check(rank)

    def _end(self, error: RankError) -> None:
        self._error = self._error or error
        self._changed.notify_all()

    def _check(self, rank: int) -> None:
        if rank in self._left:
            raise ChannelClosed(f"rank {rank} has closed", rank)
        if self._error is not None:
            raise type(self._error)(self._error.message, self._error.rank)


class InProcess:
    """Collectives of one thread."""

    def __init__(self, group: InProcessGroup, rank: int) -> None:
        self._group = group
        self._next_round = 0
        self.rank = rank
        self.world_size = group.world_size

    def all_reduce(self, x: Tensor) -> None:
        check_sum(x)
        sum_in_rank_order(self.all_gather(x), x)

    def all_gather(self, x: Tensor) -> Tensor:
        check(x)
        return torch.stack([each for (each,) in self._exchange([x.clone()])])

    def broadcast(self, x: Tensor, root: int) -> None:
        check(x)
        (sent,) = self._exchange([x.clone()])[root]
        x.copy_(sent)

    def all_to_all(self, rows: Tensor, counts: Sequence[int]) -> tuple[Tensor, list[int]]:
        check_rows(rows, counts, self.world_size)
        arrived = self._exchange(list(rows.clone().split(list(counts))))
        mine = [sent[self.rank] for sent in arrived]
        return torch.cat(mine), [len(each) for each in mine]

    def barrier(self) -> None:
        self._exchange([])

    def abort(self) -> None:
        self._group.abort(self.rank)

    def close(self) -> None:
        self._group.leave(self.rank)

    def _exchange(self, tensors: list[Tensor]) -> list[list[Tensor]]:
        number, self._next_round = self._next_round, self._next_round + 1
        return self._group.exchange(self.rank, number, tensors)
