"""Ranks on the CPUs of several nodes: torch's gloo over TCP."""

from datetime import timedelta

from torch._C._distributed_c10d import PrefixStore, ProcessGroupGloo, TCPStore

from rtp_serve.parallel.process_group import ProcessGroup, Store

_LATER_S = 2.0
"""gloo gives up so long after this package has: it tells a late rank from a lost one no more."""


def meet(host: str, port: int, rank: int, world_size: int, timeout_s: float = 60.0) -> Store:
    """The store at which a group's ranks meet: rank 0 serves it at `host`:`port`, which all reach.

    Raises RuntimeError (torch's DistNetworkError among them) if they have not after `timeout_s`.
    """
    timeout = timedelta(seconds=timeout_s)
    return TCPStore(host, port, world_size, rank == 0, timeout, wait_for_workers=False)


def serve_store(host: str, port: int = 0) -> Store:
    """The same for a process that is no rank and outlives them, so that they can still say who of
    them was lost: it lives as long as the object. `port` of 0 takes a free one, its `port`."""
    return TCPStore(host, port, None, True, wait_for_workers=False)


def reach_store(host: str, port: int, timeout_s: float = 60.0) -> Store:
    """A rank's connection to a store that another process serves; as for `meet`."""
    timeout = timedelta(seconds=timeout_s)
    return TCPStore(host, port, None, False, timeout, wait_for_workers=False)


def gloo(
    store: Store,
    rank: int,
    world_size: int,
    *,
    address: str,
    timeout_s: float = 60.0,
) -> ProcessGroup:
    """Join the group; returns when all ranks have. `address` is this node's own, at which the
    others reach it. No part of torch's default group."""
    options = ProcessGroupGloo._Options()  # type: ignore[attr-defined]
    options._devices = [ProcessGroupGloo.create_device(hostname=address)]
    options._timeout = timedelta(seconds=timeout_s + _LATER_S)
    group = ProcessGroupGloo(PrefixStore("gloo", store), rank, world_size, options)
    return ProcessGroup(group, store, timeout_s=timeout_s)
