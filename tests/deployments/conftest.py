"""One Ray cluster of two nodes for all tests of this directory that need one."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

# Ray reads these when it is imported, in this process and in all that it starts.
os.environ["RAY_AUTH_MODE"] = "disabled"
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
os.environ["RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO"] = "0"
os.environ["RAY_SERVE_REPLICA_AUTOSCALING_METRIC_PUSH_INTERVAL_S"] = "0.5"
os.environ["RAY_SERVE_HANDLE_AUTOSCALING_METRIC_PUSH_INTERVAL_S"] = "0.5"
os.environ.pop("RAY_ADDRESS", None)

import pytest
import ray
from ray import serve
from ray.cluster_utils import Cluster

from tests.checkpoints import tiny_config, write_checkpoint
from tests.deployments.applications import BACK, FRONT, RaySession, free_port
from tests.unit.text.vocabularies import byte_level_directory

_OBJECT_STORE_BYTES = 80 << 20
_TEMPLATE = "{% for message in messages %}<{{ message.role }}>{{ message.content }}{% endfor %}"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--all-faults",
        metavar="FILE",
        help="strike with each fault in each state of a transfer, and write what it cost to FILE",
    )


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """One process runs them all, so that there is one cluster."""
    for item in items:
        if item.get_closest_marker("ray"):
            item.add_marker(pytest.mark.xdist_group("ray"))


@pytest.fixture(scope="session")
def session() -> Iterator[RaySession]:
    directory = tempfile.mkdtemp(prefix="rtp-test-")
    os.environ["RAY_TMPDIR"] = directory
    Path(directory, "ray").mkdir()
    node = {"num_cpus": 8, "object_store_memory": _OBJECT_STORE_BYTES}
    cluster = Cluster(
        initialize_head=True,
        head_node_args={**node, "include_dashboard": False, "resources": {FRONT: 100}},
    )
    cluster.add_node(**node, resources={BACK: 100})
    ray.init(address=cluster.address, namespace="serve", log_to_driver=False)
    port = free_port()
    serve.start(proxy_location="HeadOnly", http_options={"host": "127.0.0.1", "port": port})
    yield RaySession(cluster.address, f"http://127.0.0.1:{port}")
    serve.shutdown()
    ray.shutdown()
    cluster.shutdown()
    del os.environ["RAY_TMPDIR"]
    shutil.rmtree(directory, ignore_errors=True)


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint with random weights, a token a letter and a chat template."""
    directory = tmp_path_factory.mktemp("model")
    byte_level_directory(directory, chat_template=_TEMPLATE)
    return write_checkpoint(
        directory, tiny_config(vocab_size=264, eos_token_id=260, max_position_embeddings=4096)
    )
