"""Unit tests are the control plane's: none of them may bring torch or Ray along."""

import sys
from collections.abc import Iterator

import pytest


@pytest.fixture(scope="session", autouse=True)
def _stays_free_of_torch_and_ray() -> Iterator[None]:
    before = set(sys.modules)
    yield
    brought = {"torch", "ray"} & (set(sys.modules) - before)
    assert not brought, f"a unit test imported {brought}"
