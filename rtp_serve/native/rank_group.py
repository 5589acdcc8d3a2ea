"""Ranks of one node that compute together through shared memory.

Buffers come by address: this package knows no tensors. Every rank calls the same methods in the
same order with equal sizes, each from one thread at a time; `abort` and `close` from any.
"""

from collections.abc import Sequence

from rtp_kernels import _C
from rtp_serve.native.ended import error_of
from rtp_serve.native.shared_file import SharedFile

DEFAULT_SLOT_BYTES = 1 << 20
DEFAULT_TIMEOUT_S = 60.0


class RankGroup:
    """One rank's part. What waits raises RankLost, RankLate, RanksAborted or ChannelClosed, and so
    does everything on every rank afterwards."""

    def __init__(
        self,
        name: str,
        rank: int,
        world_size: int,
        *,
        slot_bytes: int = DEFAULT_SLOT_BYTES,
        timeout_s: float = DEFAULT_TIMEOUT_S,
    ) -> None:
        """Join the group of this name, which is new and known to its ranks alone; waits for nobody.

        Memory: 2 · world_size · slot_bytes for all together. `timeout_s` is how long a rank is
        waited for that lives and does not come. Raises SharedMemoryUnavailable, or ValueError if
        the rank is taken or others have joined with other sizes.
        """
        file = SharedFile(name, _C.RankGroup.file_bytes(world_size, slot_bytes))
        try:
            self.kernel = _C.RankGroup(file.descriptor, rank, world_size, slot_bytes, timeout_s)
        finally:
            file.close()
        self._file = file
        if self.kernel.has_all():
            file.forget_name()

    @property
    def rank(self) -> int:
        return self.kernel.rank

    @property
    def world_size(self) -> int:
        return self.kernel.size

    def barrier(self) -> None:
        """Wait for all ranks to come here."""
        try:
            self.kernel.barrier()
        except _C.Ended as ended:
            raise error_of(ended) from None

    def all_reduce(self, x: int, count: int, is_bf16: bool) -> None:
        """x [count], float32 or bfloat16, becomes the sum of all ranks' in rank order."""
        try:
            self.kernel.all_reduce(x, count, is_bf16)
        except _C.Ended as ended:
            raise error_of(ended) from None

    def all_gather(self, out: int, x: int, num_bytes: int) -> None:
        """out [world_size, num_bytes] gets every rank's x."""
        try:
            self.kernel.all_gather(out, x, num_bytes)
        except _C.Ended as ended:
            raise error_of(ended) from None

    def broadcast(self, x: int, num_bytes: int, root: int) -> None:
        """x of rank `root` becomes everybody's."""
        try:
            self.kernel.broadcast(x, num_bytes, root)
        except _C.Ended as ended:
            raise error_of(ended) from None

    def all_to_all(self, rows: int, row_bytes: int, counts: Sequence[int]) -> "Arrivals":
        """Send the first counts[0] rows to rank 0, and so on; what the others send.

        `rows` must live until the arrivals are taken.
        """
        try:
            return Arrivals(_C.AllToAll(self.kernel, rows, row_bytes, counts))
        except _C.Ended as ended:
            raise error_of(ended) from None

    def abort(self) -> None:
        """End the work of all ranks: who waits is woken, and nobody waits again."""
        self.kernel.abort()

    def close(self) -> None:
        """Take no further part; others lose this rank where they wait for it."""
        self.kernel.close()
        self._file.forget_name()


class Arrivals:
    """Rows that other ranks have sent, to be taken once, before anything else is asked."""

    def __init__(self, kernel: _C.AllToAll) -> None:
        self._kernel = kernel
        self.counts: list[int] = kernel.counts()
        """From each rank."""

    def take(self, out: int) -> None:
        """Into out [sum of counts], in rank order."""
        try:
            self._kernel.receive(out)
        except _C.Ended as ended:
            raise error_of(ended) from None
