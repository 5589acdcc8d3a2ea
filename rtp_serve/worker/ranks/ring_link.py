"""Orders through a ring of shared memory: for ranks of one node."""

from rtp_serve.native.step_ring import StepReader, StepWriter

_PATIENCE_S = 60.0
"""How long a follower may leave the ring full."""

_LOOK_S = 3600.0
"""A wait ends early when its other side does."""


class RingSender:
    """To every follower."""

    def __init__(self, writer: StepWriter) -> None:
        self._writer = writer

    def send(self, data: bytes) -> None:
        """Raises RankError if a follower is gone or does not read."""
        self._writer.write(data, _PATIENCE_S)

    def close(self) -> None:
        self._writer.close()


class RingReceiver:
    """One follower's."""

    def __init__(self, reader: StepReader) -> None:
        self._reader = reader

    def receive(self) -> bytes:
        """Raises RankError once no more will come."""
        while True:
            data = self._reader.read(_LOOK_S)
            if data is not None:
                return data

    def close(self) -> None:
        self._reader.close()
