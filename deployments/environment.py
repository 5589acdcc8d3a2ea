"""What must stand in the environment before Ray is imported, which reads it then."""

import os
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

MARK = "RTP_SERVE_LAUNCH"
"""Variable that all processes of an own cluster inherit; its value is the cluster's directory."""

_DEFAULTS = {
    "RAY_USAGE_STATS_ENABLED": "0",
    # Silences a warning: actors without GPUs keep CUDA_VISIBLE_DEVICES.
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    # A call that comes after our shutdown must fail, not start another Ray.
    "RAY_ENABLE_AUTO_CONNECT": "0",
    # Two replicas' steps look alike to Ray, which would show one replica's.
    "RAY_DEDUP_LOGS": "0",
    # Ray's own is 15: anything else on the machine would come before the engine.
    "RAY_worker_niceness": "0",
    # For releases of Serve that read them in place of `metrics_interval_s`.
    "RAY_SERVE_REPLICA_AUTOSCALING_METRIC_PUSH_INTERVAL_S": "0.5",
    "RAY_SERVE_HANDLE_AUTOSCALING_METRIC_PUSH_INTERVAL_S": "0.5",
}

# What Ray and Serve do all the time to be ready for hundreds of nodes and replicas: on a machine
# with two cores it takes a tenth of one from the engine.
_SLOWER = {
    "RAY_SERVE_CONTROL_LOOP_INTERVAL_S": "0.25",
    "RAY_raylet_report_resources_period_milliseconds": "1000",
    "RAY_raylet_check_gc_period_milliseconds": "1000",
    "RAY_object_manager_timer_freq_ms": "1000",
    "RAY_kill_idle_workers_interval_ms": "2000",
    "RAY_local_fs_monitor_interval_ms": "10000",
    "RAY_memory_monitor_refresh_ms": "1000",
    "RAY_task_events_report_interval_ms": "10000",
    "REPORTER_UPDATE_INTERVAL_MS": "30000",
    # From this number of log files on, new ones are looked for once in the time below.
    "RAY_LOG_MONITOR_MANY_FILES_THRESHOLD": "0",
    "LOG_NAME_UPDATE_INTERVAL_S": "2",
}

# Ray's socket paths must stay under 108 bytes, and take 70 beyond its directory.
_MAX_PARENT_CHARS = 24


@contextmanager
def cluster_directory() -> Iterator[Path | None]:
    """A directory for a cluster of our own and the environment to go with it, where the user has
    not chosen; None when RAY_ADDRESS names a cluster to join."""
    is_own = not os.environ.get("RAY_ADDRESS")
    for name, value in (_DEFAULTS | (_SLOWER if is_own else {})).items():
        os.environ.setdefault(name, value)
    if not is_own:
        yield None
        return
    parent = tempfile.gettempdir()
    short = parent if len(parent) <= _MAX_PARENT_CHARS else "/tmp"
    directory = Path(tempfile.mkdtemp(prefix="rtp-", dir=short))
    try:
        os.environ[MARK] = str(directory)
        if "RAY_AUTH_MODE" not in os.environ:
            _require_token(directory / "token")
        yield directory
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def _require_token(path: Path) -> None:
    """Ray's ports are open to the network: every message must show a token of this launch."""
    path.touch(mode=0o600)
    path.write_text(secrets.token_hex(32))
    os.environ["RAY_AUTH_MODE"] = "token"
    os.environ["RAY_AUTH_TOKEN_PATH"] = str(path)
