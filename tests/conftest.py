"""What every test may rely on: fixed seeds and no accidental Ray cluster."""

import random
import sys

import numpy as np
import pytest

import rtp_serve  # noqa: F401  # before torch: it tells OpenMP's threads how to wait


@pytest.fixture(autouse=True)
def _fixed_seeds() -> None:
    random.seed(0)
    np.random.seed(0)
    if "torch" in sys.modules:
        sys.modules["torch"].manual_seed(0)
