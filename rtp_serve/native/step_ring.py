"""Messages from one process to several of its node: every reader gets every message, in order."""

from rtp_kernels import _C
from rtp_serve.native.ended import error_of
from rtp_serve.native.shared_file import SharedFile

DEFAULT_RING_BYTES = 1 << 20


class StepWriter:
    """The side that writes. One thread at a time writes; any closes."""

    def __init__(
        self, name: str, num_readers: int, *, ring_bytes: int = DEFAULT_RING_BYTES
    ) -> None:
        """Open the ring of this name, which is new and known to its processes alone.

        Readers may come later: messages wait for them, as far as there is room. Raises
        SharedMemoryUnavailable, or ValueError if others have opened it with other sizes.
        """
        self._file = SharedFile(name, _C.ring_file_bytes(num_readers, ring_bytes))
        try:
            self._kernel = _C.RingWriter(self._file.descriptor, num_readers, ring_bytes)
        finally:
            self._file.close()
        if self._kernel.has_all():
            self._file.forget_name()

    def write(self, message: bytes, timeout_s: float) -> None:
        """Return when all of `message` is in the ring; a longer one passes through it in pieces.

        Raises RankLost if a reader has died or left, RankLate if one leaves no room for so long,
        ChannelClosed after any of them.
        """
        try:
            self._kernel.write(message, timeout_s)
        except _C.Ended as ended:
            raise error_of(ended) from None

    def check(self) -> None:
        """Raise RankLost if a reader has died or left; asks the system every 100 ms at most."""
        try:
            self._kernel.check()
        except _C.Ended as ended:
            raise error_of(ended) from None

    def close(self) -> None:
        """Readers read what is there, and then hear of it."""
        self._kernel.close()
        self._file.forget_name()


class StepReader:
    """One of the sides that read. One thread at a time reads; any closes."""

    def __init__(
        self, name: str, reader: int, num_readers: int, *, ring_bytes: int = DEFAULT_RING_BYTES
    ) -> None:
        """Open the ring as reader number `reader`; as for StepWriter."""
        assert 0 <= reader < num_readers, f"reader {reader} of {num_readers}"
        self._file = SharedFile(name, _C.ring_file_bytes(num_readers, ring_bytes))
        try:
            self._kernel = _C.RingReader(self._file.descriptor, reader, num_readers, ring_bytes)
        finally:
            self._file.close()
        if self._kernel.has_all():
            self._file.forget_name()

    def read(self, timeout_s: float) -> bytes | None:
        """The next message, None if none is complete after so long.

        Raises RankLost if the writer has died, ChannelClosed if it has closed the ring and all is
        read, or this side has.
        """
        try:
            return self._kernel.read(timeout_s)
        except _C.Ended as ended:
            raise error_of(ended) from None

    def close(self) -> None:
        """Read no more; the writer loses this reader."""
        self._kernel.close()
        self._file.forget_name()
