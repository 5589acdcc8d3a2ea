"""What a worker process imports before it is told to be an engine replica."""

import os
import signal
import threading
from importlib import import_module

import ray._private.worker

from deployments.deferred_torch import defer_unused_torch

LIFE_S = 3600.0
"""Of a process that no replica takes: it ends itself, so that there are never more than were asked
for, and none for long when the application has gone."""

_MODULES = ("ray.serve._private.replica", "deployments.replicas", "rtp_serve.build")


def import_engine() -> None:
    """Called by Ray when the process has started; see `deployments.warm_processes`."""
    defer_unused_torch()
    for name in _MODULES:
        import_module(name)
    # Imported here: this module's name is needed where the engine is not.
    from rtp_serve.worker.spare_memory import return_spare_memory

    return_spare_memory()
    end = threading.Timer(LIFE_S, _end_unless_taken)
    end.daemon = True
    end.start()


def _end_unless_taken() -> None:
    if ray._private.worker.global_worker.actor_id.is_nil():
        os.kill(os.getpid(), signal.SIGTERM)
