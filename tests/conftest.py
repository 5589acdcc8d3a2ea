"""What every test may rely on: fixed seeds and no accidental Ray cluster."""

import random
import sys

import numpy as np
import pytest


@pytest.fixture(autouse=True)
def _fixed_seeds() -> None:
    random.seed(0)
    np.random.seed(0)
    if "torch" in sys.modules:
        sys.modules["torch"].manual_seed(0)
