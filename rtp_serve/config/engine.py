"""What one engine is told: which model, how much memory, how it schedules."""

from typing import Literal

from pydantic import Field, model_validator

from rtp_serve.config.base import Config
from rtp_serve.config.kv_store import KVStoreConfig
from rtp_serve.config.parallel import ParallelConfig
from rtp_serve.config.sizes import ByteSize

Dtype = Literal["auto", "bfloat16", "float32"]


class CacheConfig(Config):
    """The device's KV blocks."""

    block_size: Literal[16] = 16
    """Tokens per block."""

    memory: ByteSize = 1 << 30
    """Bytes for KV blocks, as a number or with a unit ("512MiB", "2GB")."""

    num_blocks: int | None = Field(default=None, ge=2)
    """Exact number of blocks (one of them is the null block); overrides `memory`."""

    enable_prefix_caching: bool = True
    """Keep blocks findable by content after their sequence is gone."""

    enable_partial_hits: bool = True
    """Reuse also what a block begins with, up to 15 tokens after the last full block found."""

    is_shared: bool = False
    """Have the blocks in shared memory, where other replicas of the node can read them. The
    disaggregated topology sets it."""


class SchedulerConfig(Config):
    """How a step is filled."""

    policy: Literal["fcfs", "priority"] = "fcfs"
    """Order of the waiting queue; with "priority" lower numbers go first."""

    max_num_batched_tokens: int = Field(default=1024, ge=1)
    """Token budget of one step; longer prompts are computed in chunks."""

    max_num_seqs: int = Field(default=64, ge=1, le=4096)
    """Sequences that may run at once."""

    max_queued: int = Field(default=1024, ge=1)
    """Requests that may wait; beyond it new ones are refused with 429."""


class WeightStoreConfig(Config):
    """Files of packed weights, which every replica of a node maps: one copy in memory for all."""

    enable: bool = True
    """Map the file of the model's weights; write it after the first load of a checkpoint."""

    directory: str | None = None
    """Where the files are; default: `weights` in the model cache."""

    max_size: ByteSize = 32 << 30
    """Bytes of all files together; beyond it those that were not used for longest are removed."""


class ModelSource(Config):
    """Where weights come from."""

    model: str = "smollm2-135m-instruct"
    """A local directory, a .gguf file, a Hugging Face repository id or a catalogue alias."""

    revision: str | None = None
    """Branch, tag or commit of a Hugging Face repository."""


class EngineConfig(ModelSource):
    """One engine."""

    served_model_name: str | None = None
    """The name clients use; default: the value of `model`."""

    dtype: Dtype = "auto"
    """Compute type; "auto" takes the checkpoint's own."""

    max_model_len: int | None = Field(default=None, ge=16)
    """Context limit in tokens; default: the checkpoint's, cut to what the KV memory holds."""

    num_threads: int | None = Field(default=None, ge=1, le=512)
    """Compute threads of a rank; default: the cores this process may use, shared out among the
    engine's ranks of a node."""

    code_weights: bool = True
    """Hold bfloat16 weights, without loss, in three quarters of their memory: steps of few
    sequences take up to a fifth less. On CPUs with AVX512-BF16 and without AMX only."""

    screen_head: bool | None = None
    """Keep an eight-bit copy of the output head, which takes half its memory again: greedy steps of
    up to 16 sequences then read half as much of it, and choose the same tokens. Default: where the
    head has 64 MiB or more. bfloat16 on CPUs with AVX512-BF16 and one rank only."""

    cache: CacheConfig = CacheConfig()
    """KV blocks."""

    scheduler: SchedulerConfig = SchedulerConfig()
    """Step filling."""

    weight_store: WeightStoreConfig = WeightStoreConfig()
    """Packed weights on disk."""

    kv_store: KVStoreConfig = KVStoreConfig()
    """KV blocks below the device."""

    parallel: ParallelConfig = ParallelConfig()
    """Ranks that run the model together."""

    @property
    def source(self) -> ModelSource:
        """The model alone."""
        return ModelSource(model=self.model, revision=self.revision)

    @property
    def model_name(self) -> str:
        return self.served_model_name or self.model

    @model_validator(mode="after")
    def _check(self) -> "EngineConfig":
        if self.kv_store.host.enable and not self.cache.enable_prefix_caching:
            raise ValueError("kv_store.host.enable needs cache.enable_prefix_caching")
        if self.scheduler.max_num_seqs > self.scheduler.max_num_batched_tokens:
            raise ValueError(
                f"scheduler.max_num_seqs ({self.scheduler.max_num_seqs}) must not exceed "
                f"scheduler.max_num_batched_tokens ({self.scheduler.max_num_batched_tokens}): "
                "every running sequence needs one token of the budget"
            )
        return self
