"""Checkpoint directory → a model that is ready for its first step."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from rtp_serve.clock import Clock, WallClock
from rtp_serve.config.engine import EngineConfig, WeightStoreConfig
from rtp_serve.config.model import ModelConfig, read_model_config
from rtp_serve.errors import CheckpointError
from rtp_serve.loader.checkpoint import Checkpoint
from rtp_serve.loader.identity import RowsElsewhere
from rtp_serve.loader.load_figures import LoadFigures
from rtp_serve.loader.rank_group import hull
from rtp_serve.loader.stamp import checkpoint_stamp
from rtp_serve.loader.store.directory import StoreDirectory, default_root
from rtp_serve.loader.store.guard import WeightGuard
from rtp_serve.loader.store.store import Wanted, WeightStore
from rtp_serve.loader.weights import DEFAULT_SETTINGS, LoadedWeights, LoadSettings, load_weights
from rtp_serve.models.model import Model
from rtp_serve.models.rank import Rank
from rtp_serve.models.registry import MODELS
from rtp_serve.models.shards import shard_specs
from rtp_serve.models.weight_forms import WeightForms, fitting_forms
from rtp_serve.ops.host_array import dtype_name
from rtp_serve.ops.tensor import DType
from rtp_serve.parallel.partition import RankPart, partition
from rtp_serve.worker.capacity import Capacity, compute_dtype, plan_capacity
from rtp_serve.worker.spare_memory import return_spare_memory
from rtp_serve.worker.threads import use_compute_threads

_PLAIN = WeightForms()


@dataclass(frozen=True, slots=True)
class ModelPlan:
    """A checkpoint of which only headers were read, and what an engine would hold of it."""

    directory: Path
    config: ModelConfig
    capacity: Capacity

    stamp: str | None
    """`checkpoint_stamp` of the files as they are now."""


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A model with its weights."""

    model: Model

    identity: str
    """Of the tensors that it is made of, see `loader.identity`."""

    share: int
    """Of the digest of all ranks' tensors, see `loader.identity`."""

    guard: WeightGuard
    """To be asked whether the weights still are what was loaded."""


def plan_model(directory: Path, config: EngineConfig, rank: int = 0) -> ModelPlan:
    """Raises CheckpointError or ConfigError."""
    stamp = checkpoint_stamp(directory)
    model_config = read_model_config(directory)
    return ModelPlan(directory, model_config, plan_capacity(model_config, config, rank), stamp)


def load_planned(
    plan: ModelPlan,
    config: EngineConfig,
    clock: Clock | None = None,
    report: Callable[[LoadFigures], None] | None = None,
    rank: Rank | None = None,
) -> LoadedModel:
    """Raises CheckpointError, for what headers can tell before any weight is read, and where files
    change meanwhile: their bytes may be of two checkpoints then."""
    use_compute_threads(config.num_threads)
    dtype = compute_dtype(plan.config, config)
    store = open_store(config.weight_store, clock or WallClock())
    settings = LoadSettings(report=report)
    max_len = plan.capacity.max_model_len
    if rank is not None:
        ranks_before = partition(plan.config, config.parallel)[: rank.part.rank]
        settings = replace(settings, elsewhere=read_by(plan.config, ranks_before))
    loaded = load_model(
        plan.directory,
        plan.config,
        dtype,
        max_len,
        store,
        settings,
        rank,
        fitting_forms(plan.config, dtype, config.screen_head, config.code_weights),
    )
    if checkpoint_stamp(plan.directory) != plan.stamp:
        raise CheckpointError(f"{plan.directory}: its files have changed while they were read")
    return_spare_memory()
    return loaded


def load_model(
    directory: Path,
    config: ModelConfig,
    dtype: str | DType,
    max_positions: int,
    store: WeightStore | None = None,
    settings: LoadSettings = DEFAULT_SETTINGS,
    rank: Rank | None = None,
    forms: WeightForms = _PLAIN,
) -> LoadedModel:
    """The checkpoint's model alone, computing in `dtype` at positions below `max_positions`; a
    rank's part of it, where there are several. Its weights are held in the given forms.

    With a `store` its weights are mapped where they can be; the store's guard then knows of them.
    """
    name = dtype_name(dtype)
    factory = MODELS.load(config.architecture)
    specs = factory.weight_specs(config)
    if rank is not None and not rank.is_alone:
        names = frozenset(tensor.name for spec in specs for tensor in spec.tensors)
        settings = replace(settings, of_others=names)
        specs = shard_specs(specs, config, rank.part)
        forms = replace(forms, has_screened_head=False)
    specs = forms.of(specs, config)

    def read() -> LoadedWeights:
        torch_dtype = getattr(torch, name)
        return load_weights(Checkpoint(directory), specs, config, torch_dtype, settings=settings)

    if store is None:
        loaded = read()
    else:
        loaded = store.get(Wanted(directory, config.architecture, specs, name), read)
    model = factory(config, loaded.weights, max_positions, rank)
    guard = store.guard if store else WeightGuard()
    return LoadedModel(model, loaded.identity, loaded.share, guard)


def read_by(config: ModelConfig, ranks: Sequence[RankPart]) -> RowsElsewhere:
    """What these ranks read of the checkpoint's tensors."""
    specs = MODELS.load(config.architecture).weight_specs(config)
    found: dict[str, list[tuple[int, int]]] = {}
    for part in ranks:
        tensors = (tensor for spec in shard_specs(specs, config, part) for tensor in spec.tensors)
        for name, rows in hull({tensor.name: tensor.row_range} for tensor in tensors).items():
            found.setdefault(name, []).append(rows)
    return found


def open_store(config: WeightStoreConfig, clock: Clock) -> WeightStore | None:
    """For one model; None where the configuration says so."""
    if not config.enable:
        return None
    root = Path(config.directory).expanduser().absolute() if config.directory else default_root()
    return WeightStore(StoreDirectory(root), config.max_size, clock)
