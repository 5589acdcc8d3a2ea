"""Worker processes that have imported what an engine replica imports, and wait to become one.

    EngineReplica, when it runs ──its environment──► Ray's key-value store, one entry a node
                                                            │
    controller, when nothing has changed for a while ◄──────┘
        └─ PrestartWorkers ──► raylet ──► idle processes, whose set-up hook imports the engine

Ray, Serve and the engine take seconds of CPU time to import, when load has left none. An actor
takes an idle process of its runtime environment; the hook is part of that environment, so no other
actor does. A process that is not there costs the imports, no more.
"""

import json
import logging
import os
import threading
from dataclasses import asdict, dataclass
from typing import Any

import grpc
import ray
from ray._private.grpc_utils import init_grpc_channel
from ray._private.ray_constants import WORKER_PROCESS_SETUP_HOOK_ENV_VAR
from ray.core.generated.common_pb2 import Language
from ray.core.generated.node_manager_pb2 import PrestartWorkersRequest
from ray.core.generated.node_manager_pb2_grpc import NodeManagerServiceStub
from ray.experimental.internal_kv import (
    _internal_kv_get,
    _internal_kv_list,
    _internal_kv_put,
)

from deployments.engine_imports import LIFE_S, import_engine

logger = logging.getLogger("ray.serve")  # the controller's log file is Serve's

_NAMESPACE = "rtp_serve"
_TIMEOUT_S = 5.0


def warm_environment() -> dict[str, Any]:
    """The runtime environment of a deployment whose processes are started ahead."""
    hook = f"{import_engine.__module__}.{import_engine.__qualname__}"
    return {"env_vars": {WORKER_PROCESS_SETUP_HOOK_ENV_VAR: hook}}


@dataclass(frozen=True, slots=True)
class _Template:
    """What a replica's process was started with."""

    raylet: str
    """Address."""
    job_id: str
    runtime_env: str


def tell_template(application: str, deployment: str) -> None:
    """Of the calling replica, if its processes are started ahead; the latest of a node counts.
    Blocks for a moment."""
    if WORKER_PROCESS_SETUP_HOOK_ENV_VAR not in os.environ:
        return
    context = ray.get_runtime_context()
    node_id = context.get_node_id()
    (node,) = (each for each in ray.nodes() if each["NodeID"] == node_id)
    template = _Template(
        f"{node['NodeManagerAddress']}:{node['NodeManagerPort']}",
        context.get_job_id(),
        context.get_runtime_env_string(),
    )
    key = f"{_prefix(application, deployment)}{node_id}"
    _internal_kv_put(key, json.dumps(asdict(template)), namespace=_NAMESPACE)


class WarmProcesses:
    """Of one deployment, on each node that has had a replica of it."""

    def __init__(self, application: str, deployment: str, calm_s: float) -> None:
        """`calm_s`: processes that replicas have taken are made up for when as long nothing has
        changed, as their imports would take CPU time from those that start."""
        self._prefix = _prefix(application, deployment)
        self._calm_s = calm_s
        self._count = WarmCount()

    def keep(self, num: int, target: int, now: float) -> None:
        """Have `num` processes beside the `target` replicas that are ordered at `now`."""
        missing = self._count.missing(num, target, now, self._calm_s)
        if missing:
            thread = threading.Thread(target=_start, args=(self._prefix, missing), daemon=True)
            thread.start()


class WarmCount:
    """How many processes there should be by what was asked for and taken."""

    def __init__(self) -> None:
        self._num = self._target = 0
        self._changed_s = float("-inf")
        self._asked_s = float("-inf")

    def missing(self, num: int, target: int, now: float, calm_s: float) -> int:
        """Those to start now, which from then on are counted."""
        if now - self._asked_s > LIFE_S:
            self._num = 0
        if target != self._target:
            self._num = max(0, self._num - max(0, target - self._target))
            self._target, self._changed_s = target, now
        missing = num - self._num
        if missing <= 0 or now - self._changed_s < calm_s:
            return 0
        self._num, self._asked_s = num, now
        return missing


def _prefix(application: str, deployment: str) -> str:
    return f"template.{application}.{deployment}."


def _start(prefix: str, num: int) -> None:
    """Ask every node's raylet for `num` processes; one that does not answer is passed over."""
    for key in _internal_kv_list(prefix, namespace=_NAMESPACE):
        template = _Template(**json.loads(_internal_kv_get(key, namespace=_NAMESPACE)))
        request = PrestartWorkersRequest(
            language=Language.PYTHON,
            job_id=bytes.fromhex(template.job_id),
            runtime_env_info={"serialized_runtime_env": template.runtime_env},
            keep_alive_duration_secs=int(2 * LIFE_S),
            num_workers=num,
        )
        try:
            with init_grpc_channel(template.raylet) as channel:
                NodeManagerServiceStub(channel).PrestartWorkers(request, timeout=_TIMEOUT_S)
        except grpc.RpcError as error:
            logger.info("%s starts no process ahead: %s", template.raylet, error)
