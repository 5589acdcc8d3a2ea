"""The versions of one served model, as checkpoints give them.

A reload exchanges weights, not the model: KV memory, the limits that requests were promised and the
tokenizer in front stay what they are, so what does not fit them is refused.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from rtp_serve.clock import Clock
from rtp_serve.config.engine import EngineConfig, ModelSource
from rtp_serve.config.parallel import ParallelConfig
from rtp_serve.engine.client import ServedModel
from rtp_serve.engine.version import ModelVersion
from rtp_serve.errors import CheckpointError, ReloadRefused
from rtp_serve.loader.hub import resolve
from rtp_serve.loader.identity import total
from rtp_serve.loader.load_figures import LoadFigures
from rtp_serve.models.rank import Rank
from rtp_serve.observability import metrics
from rtp_serve.observability.metrics import MetricsSink
from rtp_serve.ops.plan import numerics_plan
from rtp_serve.parallel.collectives import Alone, Collectives
from rtp_serve.parallel.partition import partition
from rtp_serve.worker.capacity import compute_dtype
from rtp_serve.worker.loading import LoadedModel, ModelPlan, load_planned, plan_model

_CONTENT = "content_"

_Before = tuple[ModelVersion | None, ModelPlan | None, ModelSource]


class ModelVersions:
    """Loads the first version and those that follow it; for one thread at a time."""

    def __init__(
        self,
        config: EngineConfig,
        clock: Clock,
        sink: MetricsSink | None = None,
        collectives: Collectives | None = None,
    ) -> None:
        """Loads nothing yet. `collectives` are of the rank that this is, where there are several:
        then every load is a version, for whether anything is new is seen by all ranks together."""
        self._config = config
        self._clock = clock
        self._sink = sink
        self._collectives = collectives or Alone()
        self._source = config.source
        # what all versions have in common
        self._first: ModelPlan | None = None
        self._tokenizer: str | None = None
        self._last: ModelVersion | None = None
        self._last_plan: ModelPlan | None = None
        # what comes back if the last one is taken back
        self._before: _Before = None, None, self._source

    @property
    def first(self) -> ModelPlan:
        """Of the first version, once it is loaded."""
        assert self._first is not None, "nothing is loaded yet"
        return self._first

    def load(self, source: ModelSource | None = None) -> tuple[ModelVersion, LoadedModel | None]:
        """The version that is at `source` now, and its model; None where that is the last version.

        Files that nobody touched are not read again. A copy is; with the same weights it is the
        same version. A `source` of None is the last one's. Raises ConfigError, ModelNotFound,
        CheckpointError or ReloadRefused; the last version is still the last one then.
        """
        source = source or self._source
        # A link may be set to another checkpoint while this one is read.
        directory = resolve(source.model, source.revision).resolve()
        rank = self._collectives.rank
        plan = plan_model(directory, self._config, rank)
        tokenizer = _tokenizer_digest(directory)
        if self._first is not None:
            self._check_kind(self._first, plan, tokenizer)
        is_alone = self._collectives.world_size == 1
        if self._last is not None and is_alone and self._is_untouched(plan):
            self._source = source
            return self._last, None
        part = partition(plan.config, self._config.parallel)[rank]
        loaded = load_planned(
            plan, self._config, self._clock, self._report, Rank(part, self._collectives)
        )
        namespace = _namespace(plan, loaded.identity, self._config.parallel)
        before = self._last, self._last_plan, self._source
        self._last_plan, self._source = plan, source
        if self._last is not None and is_alone and namespace == self._last.namespace:
            return self._last, None
        if self._first is None:
            self._first, self._tokenizer = plan, tokenizer
        self._before = before
        self._last = self._version(plan, namespace, self._content(plan, loaded))
        return self._last, loaded

    def _is_untouched(self, plan: ModelPlan) -> bool:
        """Whether the last version was made of just these files and settings."""
        last = self._last_plan
        assert last is not None, "nothing is loaded yet"
        return (last.stamp, last.config, last.capacity.spec) == (
            plan.stamp,
            plan.config,
            plan.capacity.spec,
        )

    def take_back(self, number: int) -> bool:
        """Forget the last version if it has this number; whether it had. Not the first one."""
        if self._last is None or self._last.number != number:
            return False
        self._last, self._last_plan, self._source = self._before
        return True

    def _report(self, figures: LoadFigures) -> None:
        if self._sink is None:
            return
        self._sink.add(metrics.WEIGHT_LOAD_BYTES, figures.num_bytes)
        for phase, seconds in figures.phases.items():
            self._sink.add(metrics.WEIGHT_LOAD_SECONDS, seconds, {"phase": phase})

    def _content(self, plan: ModelPlan, loaded: LoadedModel) -> str:
        """Of a model; of one rank of several its part, which `content_of` adds up."""
        if self._collectives.rank:
            return _shown(loaded.share)
        use = {"model": asdict(plan.config), "dtype": compute_dtype(plan.config, self._config)}
        digest = hashlib.blake2b(json.dumps(use, sort_keys=True).encode(), digest_size=16)
        return _shown(total((loaded.share, int.from_bytes(digest.digest()))))

    def _version(self, plan: ModelPlan, namespace: bytes, content: str) -> ModelVersion:
        model = ServedModel(
            name=self._config.model_name,
            max_model_len=(self._first or plan).capacity.max_model_len,
            vocab_size=plan.config.vocab_size,
            eos_token_ids=plan.config.eos_token_ids,
            fingerprint=fingerprint(namespace),
            content=content,
            block_size=plan.capacity.spec.block_size,
            namespace=namespace,
        )
        return ModelVersion(0 if self._last is None else self._last.number + 1, model)

    def _check_kind(self, first: ModelPlan, plan: ModelPlan, tokenizer: str | None) -> None:
        """A checkpoint without tokenizer may be new weights alone."""
        problem = ""
        if plan.config.vocab_size != first.config.vocab_size:
            problem = f"vocab_size is {plan.config.vocab_size}, not {first.config.vocab_size}"
        elif plan.capacity.spec != first.capacity.spec:
            problem = f"its KV blocks are {plan.capacity.spec}, not {first.capacity.spec}"
        elif plan.capacity.max_model_len < first.capacity.max_model_len:
            problem = (
                f"max_model_len would be {plan.capacity.max_model_len}, less than the "
                f"{first.capacity.max_model_len} that requests were promised"
            )
        elif tokenizer not in (None, self._tokenizer):
            problem = "tokenizer.json has other content"
        if problem:
            raise ReloadRefused(
                f"{plan.directory}: {problem}; a reload exchanges the weights of a model: for "
                "another model deploy another application"
            )


def fingerprint(namespace: bytes) -> str:
    """What clients see of a version's namespace."""
    return f"fp_{namespace.hex()[:16]}"


def content_of(ranks: Sequence[str]) -> str:
    """Of a model, from all its ranks' parts."""
    return _shown(total([int(part.removeprefix(_CONTENT), 16) for part in ranks]))


def _shown(digest: int) -> str:
    return f"{_CONTENT}{digest:032x}"


def _namespace(plan: ModelPlan, weights: str, parallel: ParallelConfig) -> bytes:
    """What a block's content depends on beside its tokens: weights, by their identity, what the
    model does with them, KV format and arithmetic. The same on every node. A rank's weights are its
    part of the model; the leader makes one namespace of all ranks'."""
    identity = {
        "weights": weights,
        "model": asdict(plan.config),
        "kv": asdict(plan.capacity.spec),
        "numerics": numerics_plan(plan.capacity.spec.format),
        "parallel": parallel.model_dump(),
    }
    return hashlib.blake2b(json.dumps(identity, sort_keys=True).encode()).digest()


def _tokenizer_digest(directory: Path) -> str | None:
    """Of the file that gives token ids their meaning; None without one."""
    path = directory / "tokenizer.json"
    try:
        return hashlib.blake2b(path.read_bytes()).hexdigest() if path.exists() else None
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error}") from error
