"""Ranks on one node's CPUs: every rank reads what the others have put into shared memory."""

from collections.abc import Sequence

import torch

from rtp_serve.native.rank_group import RankGroup
from rtp_serve.ops.tensor import Tensor
from rtp_serve.parallel.collectives import check, check_rows, check_sum


class SharedMemory:
    """Collectives over a RankGroup, which it owns from now on."""

    def __init__(self, group: RankGroup) -> None:
        self.group = group
        """For what goes past this interface: sublayers that sum in the kernels."""

        self.rank = group.rank
        self.world_size = group.world_size

    def all_reduce(self, x: Tensor) -> None:
        check_sum(x)
        self.group.all_reduce(_address(x), x.numel(), x.dtype == torch.bfloat16)

    def all_gather(self, x: Tensor) -> Tensor:
        check(x)
        out = x.new_empty((self.world_size, *x.shape))
        self.group.all_gather(_address(out), _address(x), x.nbytes)
        return out

    def broadcast(self, x: Tensor, root: int) -> None:
        check(x)
        assert 0 <= root < self.world_size, f"root {root} of {self.world_size} ranks"
        self.group.broadcast(_address(x), x.nbytes, root)

    def all_to_all(self, rows: Tensor, counts: Sequence[int]) -> tuple[Tensor, list[int]]:
        check_rows(rows, counts, self.world_size)
        row_bytes = rows.shape[1] * rows.element_size()
        arrivals = self.group.all_to_all(_address(rows), row_bytes, counts)
        out = rows.new_empty((sum(arrivals.counts), rows.shape[1]))
        arrivals.take(_address(out))
        return out, arrivals.counts

    def barrier(self) -> None:
        self.group.barrier()

    def abort(self) -> None:
        self.group.abort()

    def close(self) -> None:
        self.group.close()


def _address(x: Tensor) -> int:
    assert x.device.type == "cpu", f"a tensor on {x.device} is not in this process's memory"
    return x.data_ptr()
