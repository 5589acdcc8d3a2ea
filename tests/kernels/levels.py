"""Instruction sets and thread counts to run the kernels at, and comparison by bits."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

import rtp_kernels

ISAS = rtp_kernels.supported_isas()
DTYPES = [torch.bfloat16, torch.float32]


@contextmanager
def using(isa: str | None = None, num_threads: int = 1) -> Iterator[None]:
    isa_before, threads_before = rtp_kernels.isa(), torch.get_num_threads()
    team_before = rtp_kernels.num_threads()
    rtp_kernels.set_isa(isa or isa_before)
    torch.set_num_threads(num_threads)
    rtp_kernels.set_num_threads(num_threads)
    try:
        yield
    finally:
        rtp_kernels.set_isa(isa_before)
        torch.set_num_threads(threads_before)
        rtp_kernels.set_num_threads(team_before)


def bits(tensor: Tensor) -> Tensor:
    """The elements as integers: unlike floats, equal only if all bits are (and NaN is to NaN)."""
    return tensor.contiguous().view(torch.int16 if tensor.itemsize == 2 else torch.int32)


def random(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator).to(dtype)


def assert_near(actual: Tensor, expected: Tensor, scale: float = 1.0) -> None:
    """Off by rounding alone, for results of magnitude `scale`."""
    assert actual.dtype == expected.dtype
    relative, absolute = (2**-7, 4e-3) if actual.itemsize == 2 else (1e-5, 3e-6)
    torch.testing.assert_close(
        actual.float(), expected.float(), rtol=relative, atol=absolute * scale
    )
