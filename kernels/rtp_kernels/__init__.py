"""Compiled kernels. Arrays come and go by DLPack; this package knows no torch.

`RTP_SERVE_ISA` chooses another instruction set than the CPU's fastest; a name the CPU does not have
raises ValueError. Threads are the module's own, as many as a thread has set for itself.
"""

import os

from rtp_kernels import _C
from rtp_kernels._C import isa, num_threads, set_isa, set_num_threads, supported_isas

__all__ = ["_C", "isa", "num_threads", "set_isa", "set_num_threads", "supported_isas"]

if "RTP_SERVE_ISA" in os.environ:
    set_isa(os.environ["RTP_SERVE_ISA"])
