"""Applications under test on the session's cluster."""

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
from prometheus_client.parser import text_string_to_metric_families
from ray import serve
from ray.serve.context import _get_global_client
from ray.serve.handle import DeploymentHandle

from rtp_serve.observability.metrics import PREFIX

FRONT, BACK = "front", "back"
"""Custom resources of the head node, where HTTP is served, and of the other node."""


@dataclass(frozen=True, slots=True)
class RaySession:
    """The cluster of a test session."""

    address: str
    http_url: str


@dataclass(frozen=True, slots=True)
class RunningApp:
    """An application that is ready."""

    name: str
    url: str
    handle: DeploymentHandle

    def pids(self, deployment: str) -> list[int]:
        """The processes of a deployment's replicas, as Serve knows them."""
        details = _get_global_client().get_serve_details()
        replicas = details["applications"][self.name]["deployments"][deployment]["replicas"]
        return [replica["pid"] for replica in replicas if replica["state"] == "RUNNING"]

    def figures(self) -> dict[str, float]:
        """Of `/metrics`, sums over replicas and labels, names without their prefix."""
        sums: dict[str, float] = {}
        text = httpx.get(f"{self.url}/metrics", timeout=10).text
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                name = sample.name.removeprefix(PREFIX)
                sums[name] = sums.get(name, 0.0) + sample.value
        return sums


@contextmanager
def running(session: RaySession, name: str, app: serve.Application) -> Iterator[RunningApp]:
    """Deploy, and delete in the end whatever happened."""
    try:
        handle = serve.run(app, name=name, route_prefix=f"/{name}")
        yield RunningApp(name, f"{session.http_url}/{name}", handle)
    finally:
        serve.delete(name)


def free_port() -> int:
    """A port of the loopback interface that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def tiny_engine(model: Path, **scheduler: Any) -> dict[str, Any]:
    """Engine settings for a test's small model."""
    return {
        "model": str(model),
        "served_model_name": "tiny",
        "num_threads": 1,
        "cache": {"num_blocks": 512},
        "scheduler": scheduler,
        "weight_store": {"enable": False},
    }
