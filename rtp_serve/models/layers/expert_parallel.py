"""A sparse layer whose experts are on several groups of ranks.

Between attention and the next layer each rank has a slice of the step's tokens:

    partial sums ─ scatter_sum ─► own tokens ─ route ─ dispatch ─► experts' ranks
    of all tokens                                                       │ experts
    all tokens ◄─ gather ─ + residual ◄─ own tokens' sums ◄─ combine ──┘

A row goes once to each rank that has one of its experts, or a part of one. What comes back is added
in rank order, so a token's bits depend neither on its place in the step nor on the other tokens.
"""

from collections.abc import Callable, Sequence
from itertools import pairwise

import torch

from rtp_serve.ops.tensor import DType, Tensor
from rtp_serve.parallel.collectives import Collectives

_ID_BYTES = _WEIGHT_BYTES = 4

RunExperts = Callable[[Tensor, Tensor, Tensor], Tensor]
"""rows [n, hidden_size], ids [n, top_k], weights [n, top_k] → sums over this rank's experts
[n, hidden_size], float32."""


class TokenSlices:
    """Takes a step's tokens apart, and puts them together: the same number on every rank but the
    last ones, which may have fewer or none."""

    def __init__(self, collectives: Collectives) -> None:
        self._collectives = collectives

    def own(self, x: Tensor) -> Tensor:
        """This rank's rows of x [n, d], which all ranks have: a view."""
        rank = self._collectives.rank
        size = self._size(len(x))
        return x[rank * size : (rank + 1) * size]

    def scatter_sum(self, partial: Tensor) -> Tensor:
        """partial [n, d], float32, of every rank → the sums of this rank's rows, in rank order."""
        size, world_size = self._size(len(partial)), self._collectives.world_size
        ends = [min(size * (rank + 1), len(partial)) for rank in range(-1, world_size)]
        counts = [max(0, end - begin) for begin, end in pairwise(ends)]
        came, _ = self._collectives.all_to_all(partial, counts)
        sums, *others = came.view(world_size, -1, partial.shape[1])
        for other in others:
            sums += other
        return sums

    def gather(self, own: Tensor, num_tokens: int) -> Tensor:
        """Every rank's rows, one behind the other: [num_tokens, d]."""
        padded = own.new_zeros(self._size(num_tokens), own.shape[1])
        padded[: len(own)] = own
        return self._collectives.all_gather(padded).view(-1, own.shape[1])[:num_tokens]

    def _size(self, num_tokens: int) -> int:
        return -(-num_tokens // self._collectives.world_size)


class ExpertExchange:
    """Sends rows to the ranks of their experts, and adds up what comes back."""

    def __init__(self, collectives: Collectives, group_ends: Sequence[int]) -> None:
        """Groups of ranks, in order: group g has the experts below group_ends[g], from where the
        group before it ends. Its ranks have a part of each."""
        self._collectives = collectives
        self._ends = torch.tensor(group_ends)
        self._group_size = collectives.world_size // len(group_ends)

    def __call__(self, x: Tensor, ids: Tensor, weights: Tensor, experts: RunExperts) -> Tensor:
        """x [n, hidden_size], of this rank's tokens alone; ids and weights [n, top_k] → [n,
        hidden_size], float32. Runs this rank's experts for every rank's tokens."""
        targets = self._targets(ids)
        order = torch.cat(targets)
        message = _packed(x[order], ids[order], weights[order])
        came, counts = self._collectives.all_to_all(message, [len(each) for each in targets])
        partial = experts(*_unpacked(came, x.shape[1], x.dtype, ids.shape[1]))
        back, _ = self._collectives.all_to_all(partial, counts)
        sums = torch.zeros(x.shape, dtype=torch.float32)
        begin = 0
        for rows in targets:  # in rank order, each row at most once a rank
            end = begin + len(rows)
            sums[rows] += back[begin:end]
            begin = end
        return sums

    def _targets(self, ids: Tensor) -> list[Tensor]:
        """For each rank the rows that go there, ascending."""
        group_of = torch.bucketize(ids, self._ends, right=True)
        is_wanted = torch.zeros(len(ids), len(self._ends), dtype=torch.bool)
        is_wanted.scatter_(1, group_of, value=True)
        by_group = [rows.nonzero()[:, 0] for rows in is_wanted.unbind(1)]
        return [rows for rows in by_group for _ in range(self._group_size)]


def _packed(x: Tensor, ids: Tensor, weights: Tensor) -> Tensor:
    """[n, bytes of a row]."""
    return torch.cat([each.contiguous().view(torch.uint8) for each in (x, ids, weights)], dim=1)


def _unpacked(
    message: Tensor, hidden_size: int, dtype: DType, top_k: int
) -> tuple[Tensor, Tensor, Tensor]:
    sizes = hidden_size * dtype.itemsize, top_k * _ID_BYTES, top_k * _WEIGHT_BYTES
    x, ids, weights = (each.contiguous() for each in message.split(sizes, dim=1))
    return x.view(dtype), ids.view(torch.int32), weights.view(torch.float32)
