"""Compiled kernels. Arrays come and go by DLPack; this package knows no torch.

Load torch first: the module then shares torch's OpenMP threads. `RTP_SERVE_ISA` chooses another
instruction set than the CPU's fastest; a name the CPU does not have raises ValueError.
"""

import os

from rtp_kernels import _C
from rtp_kernels._C import isa, num_threads, set_isa, set_num_threads, supported_isas

__all__ = ["_C", "isa", "num_threads", "set_isa", "set_num_threads", "supported_isas"]

if "RTP_SERVE_ISA" in os.environ:
    set_isa(os.environ["RTP_SERVE_ISA"])
