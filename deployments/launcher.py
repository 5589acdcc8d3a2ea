"""Runs the applications of a file until a signal comes; see `deployments.launch`."""

import logging
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import ray

from deployments.cluster import OwnCluster
from deployments.demand import check_demand
from deployments.prefetch import Prefetch
from deployments.rollout import Rollout
from deployments.stop_signals import StopSignals
from rtp_serve.cli.serve import banner
from rtp_serve.config.serve_file import ServeFile, read_serve_file
from rtp_serve.kv_store.arena_files import ArenaFiles

logger = logging.getLogger(__name__)

# How long open requests may take to finish once we are told to stop.
_STOP_TIMEOUT_S = 20.0


def launch(path: str, directory: Path | None, signals: StopSignals) -> None:
    """Serve the file's applications until a signal comes.

    `directory` is for the files of a cluster of our own; without one RAY_ADDRESS names a cluster to
    join. Raises an RtpServeError when they cannot be served; everything is down again by then.
    """
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    file = read_serve_file(path)
    rollout = Rollout(path, file)
    cluster = OwnCluster(directory) if directory else None
    try:
        prefetch = _start_ray(cluster, rollout, file)
        signals.install()  # Ray has replaced them
        rollout.start_serve()
        prefetch.wait()
        say("starting the applications …")
        rollout.deploy()
        rollout.wait_until_ready()
        _announce(cluster, rollout, file)
        signals.wait()
    except KeyboardInterrupt:
        say("\nstopping; once more to stop without waiting for open requests …")
    finally:
        signals.is_stopping = True
        _bounded(rollout.remove, signals.came_again)
        if cluster is None:
            _bounded(rollout.stop_serve, signals.came_again)
        ray.shutdown()
        if cluster is not None:
            cluster.end_processes(signals.came_again)
            ArenaFiles().remove_unheld()  # a KV-store actor had no time to


def _start_ray(cluster: OwnCluster | None, rollout: Rollout, file: ServeFile) -> Prefetch:
    """Start or join; the models of the file are fetched meanwhile if they are for this machine."""
    if cluster is None:
        say("joining the Ray cluster at RAY_ADDRESS …")
        ray.init(namespace="serve", logging_level="warning", log_to_driver=False)
        return Prefetch(())
    rollout.check_port()
    configs = [each.config for each in file.applications if each.is_ours]
    prefetch = Prefetch([config.engine for config in configs])
    say("starting Ray and Serve …")
    cluster.start()
    check_demand(configs, ray.cluster_resources())
    return prefetch


def _announce(cluster: OwnCluster | None, rollout: Rollout, file: ServeFile) -> None:
    for application in file.applications:
        if application.is_ours and rollout.has_http(application):
            print(banner(application, rollout.http), flush=True)
    if cluster is not None:
        say(f"From Python, with serve.get_app_handle:\n\n{cluster.access()} python SCRIPT\n")
    say("Ctrl-C stops it.")


def _bounded(action: Callable[[], None], hurry: threading.Event) -> None:
    """Run `action` until it is done, the time is over or `hurry` is set."""
    over = threading.Event()

    def run() -> None:
        try:
            action()
        except Exception as error:  # the top of a thread: what is half down must still go down
            logger.info("while stopping: %s: %s", type(error).__name__, error)
        finally:
            over.set()

    threading.Thread(target=run, daemon=True).start()
    for _ in range(int(_STOP_TIMEOUT_S / 0.1)):
        if over.wait(0.1) or hurry.is_set():
            return


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
