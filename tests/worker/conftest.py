from pathlib import Path

import pytest

from tests.worker.store_node import Node, make_node


@pytest.fixture
def node(tmp_path: Path) -> Node:
    return make_node(tmp_path)
