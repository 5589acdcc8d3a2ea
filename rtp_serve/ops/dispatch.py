"""Which implementation serves the ops: compiled kernels or the torch reference. Chosen once.

`RTP_SERVE_OPS=compiled|reference` overrides the choice. Tensors that are not on the CPU go to the
reference whatever the choice.
"""

import logging
import os
from enum import StrEnum
from functools import cache
from importlib import import_module
from types import ModuleType

from rtp_serve.errors import ConfigError, did_you_mean
from rtp_serve.ops import reference
from rtp_serve.ops.tensor import Tensor

logger = logging.getLogger(__name__)


class Backend(StrEnum):
    """Who does the arithmetic on the CPU."""

    COMPILED = "compiled"
    REFERENCE = "reference"


@cache
def compiled_ops() -> ModuleType | None:
    """`rtp_serve.ops.compiled`, or None where the reference is to serve everything.

    Raises ConfigError for a wrong RTP_SERVE_OPS or RTP_SERVE_ISA, and if RTP_SERVE_OPS asks for
    kernels that are not built.
    """
    wanted = os.environ.get("RTP_SERVE_OPS")
    allowed = [backend.value for backend in Backend]
    if wanted is not None and wanted not in allowed:
        raise ConfigError(f"RTP_SERVE_OPS={wanted!r} is not known{did_you_mean(wanted, allowed)}")
    if wanted == Backend.REFERENCE:
        logger.info("ops: torch reference, as RTP_SERVE_OPS asks")
        return None
    try:
        kernels = import_module("rtp_kernels")
    except ImportError as error:
        if wanted == Backend.COMPILED:
            raise ConfigError(f"RTP_SERVE_OPS=compiled, but: {error}") from error
        logger.warning("ops: torch reference, slow: the kernels are not built (%s)", error)
        return None
    except ValueError as error:
        raise ConfigError(f"RTP_SERVE_ISA: {error}") from error
    logger.info("ops: compiled kernels, %s", kernels.isa())
    return import_module("rtp_serve.ops.compiled")


def backend() -> Backend:
    """The implementation that serves CPU tensors."""
    return Backend.REFERENCE if compiled_ops() is None else Backend.COMPILED


def ops_for(tensor: Tensor) -> ModuleType:
    """The module whose functions serve `tensor`."""
    compiled = compiled_ops() if tensor.is_cpu else None
    return compiled or reference


def set_num_threads(count: int) -> None:
    """How many threads compute the calling thread's ops; torch's own are set in torch."""
    if compiled_ops() is not None:
        import_module("rtp_kernels").set_num_threads(count)
