"""Ranks on CUDA devices: NCCL.

State: the calls are those of torch's documented interface, and run in tests over gloo; no CUDA
machine has run them yet. Sums go by all-gather and local addition, as everywhere, which moves
(world_size + 1) / 2 times the bytes of NCCL's ring: the price of bits that do not depend on its
choice of algorithm.

An operation is over for the host when it is queued on the current stream, so a rank's death is
noticed by NCCL's watchdog, `timeout_s` after an operation that it never joined.
"""

from datetime import timedelta

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import PrefixStore

from rtp_serve.ops.tensor import Device
from rtp_serve.parallel.process_group import ProcessGroup, Store


def wait_on_stream(work: dist.Work) -> bool:
    """Let the current stream wait; the host goes on."""
    work.wait()
    return True


def nccl(
    store: Store, rank: int, world_size: int, *, device: Device, timeout_s: float = 60.0
) -> ProcessGroup:
    """Join the group with this rank's device; the communicator is made by the first operation."""
    torch.cuda.set_device(device)
    options = dist.ProcessGroupNCCL.Options()
    options._timeout = timedelta(seconds=timeout_s)
    group = dist.ProcessGroupNCCL(PrefixStore("nccl", store), rank, world_size, options)
    return ProcessGroup(group, store, timeout_s=timeout_s, wait=wait_on_stream)
