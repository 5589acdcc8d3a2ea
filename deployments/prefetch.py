"""Models brought to this machine while Ray starts, with progress bars, in front of the user."""

import threading
from collections.abc import Sequence

from rtp_serve.config.engine import EngineConfig
from rtp_serve.config.model import read_model_config
from rtp_serve.loader.hub import resolve
from rtp_serve.parallel.partition import partition

# A name that nothing has, or a checkpoint of an unknown kind, shows within this time.
_HEAD_START_S = 0.5


class Prefetch:
    """Fetches and checks models on a thread of its own."""

    def __init__(self, engines: Sequence[EngineConfig]) -> None:
        """Raises what goes wrong at once, before anything else is started."""
        self._engines = engines
        self._error: Exception | None = None
        self._thread = threading.Thread(target=self._run, name="prefetch", daemon=True)
        self._thread.start()
        self._thread.join(_HEAD_START_S)
        self._raise_if_failed()

    def _run(self) -> None:
        try:
            for engine in self._engines:
                _fetch(engine)
        except Exception as error:  # the top of a thread: the waiting one raises it
            self._error = error

    def wait(self) -> None:
        """Until every model is here. Raises ModelNotFound, CheckpointError or ConfigError."""
        self._thread.join()
        self._raise_if_failed()

    def _raise_if_failed(self) -> None:
        if self._error is not None:
            raise self._error


def _fetch(engine: EngineConfig) -> None:
    model = read_model_config(resolve(engine.model, engine.revision))
    partition(model, engine.parallel)
