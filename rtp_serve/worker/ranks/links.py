"""What connects leader and followers, wherever they run. Bytes alone; see `messages.py`."""

from typing import Protocol


class Sender(Protocol):
    """One end that writes, for one thread at a time."""

    def send(self, data: bytes) -> None:
        """Raises RankLost if nobody will ever read it."""
        ...

    def close(self) -> None:
        """Nothing more comes. Whoever waits for it hears so."""
        ...


class Receiver(Protocol):
    """One end that reads, for one thread."""

    def receive(self) -> bytes:
        """Wait for the next message. Raises RankLost once no more will come."""
        ...

    def close(self) -> None:
        """Nobody reads any more."""
        ...
