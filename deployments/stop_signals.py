"""SIGINT, SIGTERM and SIGHUP (a terminal that was closed) of the launcher."""

import signal
import threading
from types import FrameType


class StopSignals:
    """The first raises KeyboardInterrupt, a later one asks to hurry."""

    def __init__(self) -> None:
        self.is_stopping = False
        self.came_again = threading.Event()
        self.install()

    def install(self) -> None:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._on_signal)
        if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # what nohup has ignored stays so
            signal.signal(signal.SIGHUP, self._on_signal)

    def wait(self) -> None:
        """Until KeyboardInterrupt."""
        while True:
            signal.pause()

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self.is_stopping:
            self.came_again.set()
            return
        self.is_stopping = True
        raise KeyboardInterrupt
