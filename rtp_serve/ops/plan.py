"""The identity of the arithmetic: equal plans give equal bits, so KV and streams may be shared."""

import hashlib

import torch

from rtp_serve.ops.dispatch import Backend, backend
from rtp_serve.ops.host_array import dtype_name
from rtp_serve.ops.tensor import DType

ARITHMETIC_VERSION = 3
"""Raised with every change that gives any op other bits for the same inputs."""


def numerics_plan(dtype: str | DType) -> str:
    """Description and digest of how this process computes in `dtype`, as in
    `v3-compiled-avx512bf16-bfloat16-5f1d0c2a`.

    A function of the build, the instruction set and the type: not of threads, batch or time.
    """
    name = dtype_name(dtype)
    if name not in ("bfloat16", "float32"):
        raise ValueError(f"dtype must be bfloat16 or float32, got {name}")
    description = f"v{ARITHMETIC_VERSION}-{backend()}-{_arithmetic()}-{name}"
    digest = hashlib.blake2b(description.encode(), digest_size=4).hexdigest()
    return f"{description}-{digest}"


def _arithmetic() -> str:
    """What the bits depend on beside our code: the kernels' level, or torch's build."""
    if backend() is Backend.REFERENCE:
        return f"torch{torch.__version__}"
    from rtp_kernels import isa

    return isa()
