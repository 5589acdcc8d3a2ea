"""Reading safetensors without torch: bfloat16 as its bits."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors import deserialize


def read_bfloat16(path: Path) -> dict[str, NDArray[np.uint16]]:
    """Name → bits, through the safetensors library itself."""
    tensors = {}
    for name, tensor in deserialize(path.read_bytes()):
        assert tensor["dtype"] == "BF16", name
        tensors[name] = np.frombuffer(tensor["data"], np.uint16).reshape(tensor["shape"])
    return tensors
