"""What the store still has to do with weights that already serve, and what came of it.

Mapped weights serve at once; that their bytes are those that were written is checked beside, on a
thread of its own. When they are not, `check` raises from then on: an engine asks it after every
step, so that nothing of that step or a later one leaves it.
"""

import logging
import os
import threading
from collections.abc import Callable

from rtp_serve.errors import CorruptWeights

_LOWEST_PRIORITY = 19

_log = logging.getLogger(__name__)


class WeightGuard:
    """For one model's weights. Without work it trusts them."""

    def __init__(self) -> None:
        self._error: CorruptWeights | None = None
        self._thread: threading.Thread | None = None

    def start(self, work: Callable[[], None], *, is_awaited: bool) -> None:
        """Run `work`, which raises CorruptWeights. What others wait for has the usual priority, and
        the process does not end before it; all else has the lowest."""
        assert self._thread is None, "weights are sealed or verified once"
        name = "weight-store"
        self._thread = threading.Thread(
            target=self._run, args=(work, is_awaited), name=name, daemon=not is_awaited
        )
        self._thread.start()

    def check(self) -> None:
        """Raises CorruptWeights once the weights are known to be wrong."""
        if self._error is not None:
            raise CorruptWeights(self._error.message)

    def wait(self) -> None:
        """Until the work is done, if there is any."""
        if self._thread is not None:
            self._thread.join()

    def _run(self, work: Callable[[], None], is_awaited: bool) -> None:
        if not is_awaited:
            # On Linux this is the priority of the thread alone.
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _LOWEST_PRIORITY)
        try:
            work()
        except CorruptWeights as error:
            _log.error("%s; this engine stops", error)
            self._error = error
