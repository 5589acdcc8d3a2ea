"""One token stream being generated: the unit of scheduling."""

from dataclasses import dataclass, field
from enum import StrEnum

from rtp_serve.engine.request import FinishReason, Request, TokenLogprobs
from rtp_serve.engine.version import ModelVersion
from rtp_serve.kv_cache.block import BlockHash

_MASK = (1 << 64) - 1


class SequenceStatus(StrEnum):
    WAITING = "waiting"
    RUNNING = "running"
    PREEMPTED = "preempted"
    RESTORING = "restoring"
    """Waiting for the tiers below the device."""

    FINISHED = "finished"


@dataclass(slots=True, eq=False)
class Sequence:
    """It has no phase: it is behind by `num_tokens - num_computed_tokens`, and catches up."""

    seq_id: int
    request: Request
    index: int
    """Which of the request's n sequences."""

    version: ModelVersion
    """What it runs on to its end, whatever is loaded meanwhile."""

    arrival_s: float
    max_tokens: int
    """Output limit after the context limit is applied."""

    stop_token_ids: frozenset[int]
    """Tokens that end it: the model's (unless ignored) and the request's."""

    token_ids: list[int] = field(default_factory=list)
    """Prompt, then output."""

    num_emitted_tokens: int = field(init=False)
    """Output that another engine has generated; nothing is told of it here."""

    status: SequenceStatus = SequenceStatus.WAITING
    finish_reason: FinishReason | None = None
    num_computed_tokens: int = 0
    num_cached_tokens: int = 0
    """Of the prompt, got from the prefix cache when it first ran."""

    num_host_tokens: int = 0
    """Of those, got from the node's memory."""

    num_disk_tokens: int = 0
    num_remote_tokens: int = 0
    was_restored: bool = False
    """The tiers were asked for what the device lacks, since it last waited."""

    num_head_tokens: int = 0
    """It computes so many and then waits for the restore of those after them; 0 without one."""

    block_ids: list[int] = field(default_factory=list)
    block_hashes: list[BlockHash] = field(default_factory=list)
    num_registered_blocks: int = 0
    prompt_logprobs: list[TokenLogprobs] = field(default_factory=list)
    first_scheduled_s: float | None = None
    first_token_s: float | None = None
    last_token_s: float | None = None

    def __post_init__(self) -> None:
        emitted = self.request.emitted_tokens(self.index)
        self.num_emitted_tokens = len(emitted)
        self.token_ids = [*self.request.prompt_token_ids, *emitted]

    def __repr__(self) -> str:
        return (
            f"Sequence({self.seq_id} of {self.request.request_id!r}, {self.status}, "
            f"{self.num_computed_tokens}/{self.num_tokens} tokens, {len(self.block_ids)} blocks)"
        )

    @property
    def num_tokens(self) -> int:
        return len(self.token_ids)

    @property
    def num_computable_tokens(self) -> int:
        """Up to where it may run now."""
        return self.num_head_tokens or self.num_tokens

    @property
    def num_prompt_tokens(self) -> int:
        return len(self.request.prompt_token_ids)

    @property
    def num_output_tokens(self) -> int:
        return self.num_tokens - self.num_prompt_tokens

    @property
    def namespace(self) -> bytes:
        return self.version.namespace

    @property
    def cache_salt(self) -> str:
        return self.request.cache_salt

    @property
    def order(self) -> tuple[int, float, int]:
        """Where it stands under the "priority" policy: priority, then arrival."""
        return (self.request.priority, self.arrival_s, self.seq_id)

    @property
    def seed(self) -> int:
        """64 bits. The first sequence has the request's own; the others are spread from it."""
        return (self.request.seed + self.index * 0x9E3779B97F4A7C15) & _MASK
