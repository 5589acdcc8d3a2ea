"""How many ranks run one model together."""

from pydantic import Field

from rtp_serve.config.base import Config


class ParallelConfig(Config):
    """Ranks of one engine, `tp * ep` of them; each has a process, and its part of every layer."""

    tp: int = Field(default=1, ge=1, le=64)
    """Tensor parallel: ranks that share one dense layer, or one expert."""

    ep: int = Field(default=1, ge=1, le=64)
    """Expert parallel: groups of `tp` ranks that share out the experts of a mixture-of-experts
    model. Attention and everything else is divided among all ranks."""

    @property
    def world_size(self) -> int:
        """All ranks."""
        return self.tp * self.ep
