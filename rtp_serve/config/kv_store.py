"""The tiers of the KV cache below the device."""

from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from rtp_serve.config.base import Config
from rtp_serve.config.sizes import ByteSize

Share = Annotated[float, Field(gt=0, le=1)]


class HostTierConfig(Config):
    """The node's arena in shared memory, which all of its replicas read and write."""

    enable: bool = False
    """Keep blocks in the node's memory after the device has dropped them."""

    memory: ByteSize = 1 << 30
    """Bytes of a node's arena; at most half of the shared memory that is free."""

    policy: Literal["duel", "lru", "arc", "s3-fifo"] = "duel"
    """What goes first when it is full; "duel" picks among the others by how they would do."""

    quotas: dict[str, Share] = Field(default_factory=dict)
    """Shares of the arena that are tenants' own, by the names of API keys. What a tenant has beyond
    its share goes first, when others need room; without a share that is all it has."""

    @field_validator("quotas")
    @classmethod
    def _check_quotas(cls, quotas: dict[str, float]) -> dict[str, float]:
        if sum(quotas.values()) > 1:
            raise ValueError(f"shares add up to {sum(quotas.values()):g}; at most to 1")
        return quotas


class DiskTierConfig(Config):
    """Blocks in files, which survive restarts. It is behind the host tier."""

    enable: bool = False
    """Write the host tier's blocks to disk."""

    directory: str | None = None
    """Where the files are; default: `kv` in the model cache."""

    max_size: ByteSize = Field(default=8 << 30, ge=1 << 20)
    """Bytes that they take at most."""


class RemoteTierConfig(Config):
    """Other nodes' host tiers. What comes from there is kept in this node's."""

    enable: bool = False
    """Ask them for what this node has not."""


class PinnedMessage(Config):
    """Of a chat's beginning."""

    role: str
    """As in requests: "system", for one."""

    content: str
    """Its text."""


class PinnedPrefix(Config):
    """A beginning that many prompts have, kept in every node's arena."""

    name: str = Field(pattern=r"^[A-Za-z0-9._-]{1,64}$")
    """What figures and warnings call it."""

    prompt: str | None = None
    """A text; or give `messages`."""

    messages: tuple[PinnedMessage, ...] = ()
    """A chat's first messages, rendered without the start of an answer."""

    tenant: str = Field(default="", pattern=r"^[A-Za-z0-9._-]{0,64}$")
    """Whose requests begin so: the name of their API key, where there are keys."""

    cache_salt: str = Field(default="", max_length=256)
    """That of the requests that begin so."""

    @model_validator(mode="after")
    def _check(self) -> "PinnedPrefix":
        if (not self.prompt) == (not self.messages):
            raise ValueError(f"pinned prefix {self.name!r}: give either prompt or messages")
        return self


class KVStoreConfig(Config):
    """Tiers below the device; disk and remote need the host tier."""

    host: HostTierConfig = HostTierConfig()
    """Shared memory."""

    disk: DiskTierConfig = DiskTierConfig()
    """Files."""

    remote: RemoteTierConfig = RemoteTierConfig()
    """Other nodes."""

    pinned: tuple[PinnedPrefix, ...] = ()
    """Beginnings of prompts that are computed at the start, and kept as long as there is room."""

    application: str = Field(default="rtp-serve", pattern=r"^[A-Za-z0-9._-]{1,64}$")
    """Engines of a node with the same name share their blocks."""

    @model_validator(mode="after")
    def _check(self) -> "KVStoreConfig":
        if self.disk.enable and not self.host.enable:
            raise ValueError("disk.enable needs host.enable: blocks come to the disk from there")
        if self.remote.enable and not self.host.enable:
            raise ValueError("remote.enable needs host.enable: it is other nodes' host tiers")
        if self.pinned and not self.host.enable:
            raise ValueError("pinned needs host.enable: prefixes are kept in the host tier")
        names = [each.name for each in self.pinned]
        if len(set(names)) != len(names):
            raise ValueError(f"pinned: names must differ, got {names}")
        return self
