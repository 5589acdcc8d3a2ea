"""NCCL's backend as far as it can be tried without CUDA: the calls that it makes, over gloo."""

from datetime import timedelta
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch._C._distributed_c10d import Backend, HashStore, PrefixStore, ProcessGroupGloo

from rtp_serve.parallel.nccl import nccl


class OverGloo:
    """torch's ProcessGroupNCCL, as its documentation has it: (store, rank, size, options)."""

    made: list[Any]

    class Options:
        _timeout = timedelta(0)

    def __new__(cls, store: Any, rank: int, size: int, options: "OverGloo.Options") -> Any:
        cls.made = [store, rank, size, options]
        gloo = ProcessGroupGloo._Options()
        gloo._devices = [ProcessGroupGloo.create_device(hostname="127.0.0.1")]
        gloo._timeout = options._timeout
        return ProcessGroupGloo(store, rank, size, gloo)


def test_the_group_is_made_with_the_devices_of_its_rank(monkeypatch: pytest.MonkeyPatch):
    devices: list[torch.device] = []
    monkeypatch.setattr(dist, "ProcessGroupNCCL", OverGloo, raising=False)
    monkeypatch.setattr(torch.cuda, "set_device", devices.append)
    group = nccl(HashStore(), 0, 1, device=torch.device("cuda:3"), timeout_s=7.5)
    store, rank, size, options = OverGloo.made
    assert devices == [torch.device("cuda:3")]
    assert isinstance(store, PrefixStore)
    assert (rank, size, options._timeout) == (0, 1, timedelta(seconds=7.5))

    x = torch.arange(6.0).view(3, 2)
    y = x.clone()
    group.all_reduce(y)
    group.broadcast(y, 0)
    group.barrier()
    rows, counts = group.all_to_all(x, [3])
    assert torch.equal(group.all_gather(y)[0], x)
    assert torch.equal(rows, x)
    assert counts == [3]


@pytest.mark.parametrize("name", ["allgather", "broadcast", "alltoall_base", "barrier"])
def test_what_is_called_belongs_to_every_backend(name: str):
    """So what gloo takes in the contract's tests, NCCL takes too."""
    assert name in vars(Backend)
    assert name not in vars(ProcessGroupGloo)
