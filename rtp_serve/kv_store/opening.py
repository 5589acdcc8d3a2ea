"""From configuration to the store of this node: the arena that a process joins, and its index.

A process that finds no room for an arena, or an index that another one owns, goes on without tiers:
they make answers faster, never possible.
"""

import hashlib
import logging
from dataclasses import dataclass
from pathlib import Path

from rtp_serve.clock import Clock
from rtp_serve.config.kv_store import DiskTierConfig, KVStoreConfig
from rtp_serve.errors import ArenaMismatch, ArenaUnavailable, DiskUnavailable
from rtp_serve.kv_cache.spec import KVCacheSpec, TileOrder
from rtp_serve.kv_store.arena_files import ArenaFiles, ArenaMember
from rtp_serve.kv_store.arena_geometry import ArenaGeometry
from rtp_serve.kv_store.client import StoreClient
from rtp_serve.kv_store.disk.settings import DiskSettings
from rtp_serve.kv_store.disk.tier import DiskTier
from rtp_serve.kv_store.eviction.registry import make_policy
from rtp_serve.kv_store.node_store import NodeStore
from rtp_serve.kv_store.pin_file import PinFile

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class OpenedStore:
    """A process's part in its node's store."""

    member: ArenaMember
    client: StoreClient

    disk: Path | None = None
    """Where a `DiskReader` finds the disk tier's blocks; None without one."""

    def close(self) -> None:
        """Leave the store; its memory goes with the last who does."""
        self.client.close()
        self.member.leave()
        ArenaFiles().remove_unheld()


def open_local(
    config: KVStoreConfig, spec: KVCacheSpec, order: TileOrder, clock: Clock, cache_root: Path
) -> OpenedStore | None:
    """The store of a process that is alone on its node; None if there is no room for an arena, or
    the process is not alone, and a line in the log says so."""
    member = join_arena(config, spec, order)
    if member is None:
        return None
    store = open_node_store(member, config, clock, cache_root)
    if store is None:
        _log.warning("no KV tiers: another process owns %s", member.path)
        member.leave()
        return None
    digest = member.arena.geometry.layout_digest
    return OpenedStore(member, store, disk_directory(config.disk, cache_root, digest))


def layout_digest(spec: KVCacheSpec, order: TileOrder) -> bytes:
    """32 bytes that name how a block's bytes are to be read."""
    return hashlib.blake2b(repr((spec, order)).encode(), digest_size=32).digest()


def join_arena(
    config: KVStoreConfig, spec: KVCacheSpec, order: TileOrder, node: str = "local"
) -> ArenaMember | None:
    """The node's arena for blocks of this layout, made if it is not there; None if there is no room
    for one, and a line in the log says so."""
    files = ArenaFiles()
    files.remove_unheld()
    digest = layout_digest(spec, order)
    name = f"{config.application}-{node}-{digest.hex()[:16]}"
    try:
        num_bytes = files.num_bytes(config.host.memory)
        if not num_bytes:
            return None
        return files.join(name, spec.block_bytes, digest, num_bytes)
    except (ArenaMismatch, ArenaUnavailable) as error:
        _log.warning("no KV arena on this node: %s", error.message)
        return None


def open_node_store(
    member: ArenaMember, config: KVStoreConfig, clock: Clock, cache_root: Path
) -> NodeStore | None:
    """Own the arena's index, and with it the disk tier; None if another process does."""
    epoch = member.own()
    if epoch is None:
        return None
    geometry = member.arena.geometry
    disk = _open_disk(config.disk, cache_root, geometry, clock)
    policy = make_policy(config.host.policy, geometry.num_slabs)
    shares = config.host.quotas.items()
    quotas = {tenant: int(share * geometry.num_slabs) for tenant, share in shares}
    pin_file = PinFile(member.path)
    return NodeStore(member.arena, epoch, policy, clock, disk, quotas=quotas, pin_file=pin_file)


def disk_directory(config: DiskTierConfig, cache_root: Path, digest: bytes) -> Path | None:
    """Where blocks of one layout are; None without a disk tier."""
    if not config.enable:
        return None
    root = Path(config.directory).expanduser().absolute() if config.directory else cache_root / "kv"
    return root / digest.hex()[:16]


def _open_disk(
    config: DiskTierConfig, cache_root: Path, geometry: ArenaGeometry, clock: Clock
) -> DiskTier | None:
    directory = disk_directory(config, cache_root, geometry.layout_digest)
    if directory is None:
        return None
    try:
        settings = DiskSettings(config.max_size, block_bytes=geometry.slab_bytes)
        return DiskTier(directory, settings, clock)
    except DiskUnavailable as error:
        _log.warning("no KV disk tier: %s", error.message)
        return None
