"""LLM serving on Ray: `LLM` for scripts, `serve run configs/quickstart.yaml` for servers.

Public names are resolved on first use, so importing the package costs nothing and stays torch-free.
"""

import os
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rtp_serve.config.engine import EngineConfig
    from rtp_serve.engine.sampling_params import SamplingParams
    from rtp_serve.llm import LLM

# torch's threads, which convert weights, wait by sleeping: a spinning one would take a core from
# the kernels' own. OpenMP reads this when torch loads, so it is set before anything else.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

__all__ = ["LLM", "EngineConfig", "SamplingParams"]

_MODULES = {
    "LLM": "rtp_serve.llm",
    "EngineConfig": "rtp_serve.config.engine",
    "SamplingParams": "rtp_serve.engine.sampling_params",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'rtp_serve' has no attribute {name!r}")
    return getattr(import_module(_MODULES[name]), name)
