"""KV memory of a node's ranks that the leader sees too, for the tiers below the device.

The tiers' threads are the leader's. What a follower's steps have written is there when the leader's
own step has ended, for the last sum waits for it; and a follower sees what the leader has filled
when it is told the next step.
"""

import mmap

from rtp_serve.native.shared_file import SharedFile


class SharedKV:
    """The memory of each rank, by the name of their session."""

    def __init__(self, session: str) -> None:
        self._session = session

    def memory(self, rank: int, num_bytes: int) -> mmap.mmap:
        """Zeros at first, and the same for all who ask. Raises SharedMemoryUnavailable."""
        file = self._file(rank, num_bytes)
        try:
            return mmap.mmap(file.descriptor, num_bytes)
        finally:
            file.close()

    def seen(self, rank: int, num_bytes: int) -> memoryview:
        """A follower's memory, as the leader sees it; nobody finds it any more."""
        file = self._file(rank, num_bytes)
        try:
            region = memoryview(mmap.mmap(file.descriptor, num_bytes))
            file.forget_name()
            return region
        finally:
            file.close()

    def _file(self, rank: int, num_bytes: int) -> SharedFile:
        return SharedFile(f"{self._session}-kv-{rank}", num_bytes)
