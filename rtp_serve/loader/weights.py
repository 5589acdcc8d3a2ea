"""Checkpoint → the model's weights, in the order of the files.

The plan says which bytes are read and in what order, the reader brings them, and each weight's
collector puts them where they belong. At any moment there is the packed model so far and one
staging buffer a thread. `docs/loading.md` has the whole picture.
"""

import logging
import os
import re
from collections.abc import Callable, Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass, field
from functools import partial

import torch
from tqdm import tqdm

from rtp_serve.clock import Clock, WallClock
from rtp_serve.config.model import ModelConfig
from rtp_serve.loader.checkpoint import Checkpoint, listed
from rtp_serve.loader.collector import Collector, Place
from rtp_serve.loader.identity import ContentDigest, RowsElsewhere
from rtp_serve.loader.load_figures import LoadFigures, LoadTimer
from rtp_serve.loader.local_files import LocalFiles, ReadInto
from rtp_serve.loader.rank_group import Member, RowsByName, hull
from rtp_serve.loader.read_plan import DEFAULT_SIZES, Read, ReadSizes, TensorRows, plan_reads
from rtp_serve.loader.reader import Deliver, run_reads
from rtp_serve.loader.safetensors_header import shown
from rtp_serve.models.weights import Weights, WeightSpec
from rtp_serve.ops.tensor import Device, DType, Tensor

_log = logging.getLogger(__name__)
_DERIVED = re.compile(r"rotary_emb\.inv_freq$|\.masked_bias$|\.attention\.bias$")
_TORCH_DTYPES = {"BF16": "bfloat16", "F16": "float16", "F32": "float32"}
_WALL_CLOCK = WallClock()


@dataclass(frozen=True, slots=True)
class LoadSettings:
    """How a checkpoint is read."""

    sizes: ReadSizes = DEFAULT_SIZES

    num_threads: int = 8
    """Each reads and transforms in turn; more than cores, since most of them wait for the disk. Of
    files that are cached no more than cores read."""

    read_into: ReadInto | None = None
    """Where the bytes come from; None is the files of this machine."""

    clock: Clock = _WALL_CLOCK
    """For the figures alone."""

    report: Callable[[LoadFigures], None] | None = None
    """Hears the figures of a load that succeeded."""

    member: Member | None = None
    """Of the ranks that load this checkpoint together; None is a rank that reads for itself."""

    of_others: frozenset[str] = frozenset()
    """Tensors that other ranks want."""

    elsewhere: RowsElsewhere = field(default_factory=dict)
    """What ranks before this one read of them."""


DEFAULT_SETTINGS = LoadSettings()


@dataclass(frozen=True, slots=True)
class LoadedWeights:
    """Weights, and which they are."""

    weights: Weights

    identity: str
    """`ContentDigest.identity` of the tensors that they were made of."""

    share: int
    """`ContentDigest.share` of the same."""


def load_weights(
    checkpoint: Checkpoint,
    specs: Sequence[WeightSpec],
    config: ModelConfig,
    dtype: DType,
    device: Device | None = None,
    settings: LoadSettings = DEFAULT_SETTINGS,
) -> LoadedWeights:
    """Everything in `specs`, as `dtype`. Raises CheckpointError, for what a header can tell before
    reading any tensor.

    Shows a progress bar when standard error is a terminal, and logs where the time went. Tensors
    that nothing asks for are logged, unless they are known to be derived from others.
    """
    wanted = [tensor for spec in specs for tensor in spec.tensors]
    with settings.member or nullcontext():
        checkpoint.check(wanted)
        _warn_of_surplus(checkpoint, settings.of_others.union(t.name for t in wanted), config)
        collectors = [Collector(spec, dtype, device) for spec in specs]
        member = settings.member
        digest = ContentDigest(settings.elsewhere) if member is None else member.group.digest
        figures = _fill(collectors, checkpoint, digest, settings)
    _log.info("%s: loaded %s", checkpoint.directory, figures)
    if settings.report is not None:
        settings.report(figures)
    weights = Weights(
        {each.spec.path: each.matrix() for each in collectors if each.spec.is_matrix},
        {each.spec.path: each.vector() for each in collectors if not each.spec.is_matrix},
    )
    return LoadedWeights(weights, digest.identity(), digest.share())


def _fill(
    collectors: Sequence[Collector],
    checkpoint: Checkpoint,
    digest: ContentDigest,
    settings: LoadSettings,
) -> LoadFigures:
    """Bring every collector what it misses: alone, or with the other ranks of a group. The digest
    has seen all of it then."""
    places: dict[str, list[Place]] = {}
    for collector in collectors:
        for name, place in collector.places():
            places.setdefault(name, []).append(place)
    rows_by_name = hull({name: each.tensor.row_range} for name in places for each in places[name])
    deliver = partial(_deliver, places)
    member = settings.member
    if member is None:
        reads = _plan(checkpoint, rows_by_name, settings)
        return _run(reads, _digested(digest, deliver), settings)
    all_rows = member.group.join(member.rank, rows_by_name, deliver)
    own = member.group.own(member.rank, _plan(checkpoint, all_rows, settings))
    figures = _run(own, _digested(digest, member.group.deliver), settings)
    member.group.meet()
    return figures


def _plan(
    checkpoint: Checkpoint, rows_by_name: RowsByName, settings: LoadSettings
) -> tuple[Read, ...]:
    wanted = (TensorRows(checkpoint.tensor(name), *rows) for name, rows in rows_by_name.items())
    return plan_reads((each.in_units() for each in wanted), settings.sizes)


def _digested(digest: ContentDigest, deliver: Deliver) -> Deliver:
    """The bytes go by way of the digest, while they are in the processor's cache."""

    def deliver_digested(read: Read, data: memoryview) -> None:
        digest.add(read, data)
        deliver(read, data)

    return deliver_digested


def _deliver(places: dict[str, list[Place]], read: Read, data: memoryview) -> None:
    """Put every piece of the read to all of its places."""
    with torch.inference_mode():  # a thread's own: the caller's tensors may be of that mode
        for piece in read.pieces:
            end = piece.start + piece.num_bytes
            dtype = getattr(torch, _TORCH_DTYPES[piece.tensor.dtype])
            rows = _as_rows(data[piece.start : end], dtype, piece.tensor.shape)
            for place in places.get(piece.tensor.name, ()):
                place.put(piece.first_row, rows)


def _run(reads: Sequence[Read], deliver: Deliver, settings: LoadSettings) -> LoadFigures:
    """Carry out the reads under a progress bar."""
    timer = LoadTimer(settings.clock)
    total = sum(read.wanted_bytes for read in reads)
    with ExitStack() as stack:
        progress = stack.enter_context(
            tqdm(total=total, desc="Loading weights", unit="B", unit_scale=True, disable=None)
        )
        read_into, num_threads = settings.read_into, settings.num_threads
        if read_into is None:
            read_into = files = stack.enter_context(LocalFiles())
            if _are_cached(reads, files):
                # Nobody waits for a disk, and fewer buffers stay in the processor's own cache.
                num_threads = min(num_threads, len(os.sched_getaffinity(0)))
        for figures in run_reads(reads, read_into, deliver, num_threads, timer):
            progress.set_postfix_str(figures.shares, refresh=False)
            progress.update(figures.num_bytes - progress.n)
    return timer.figures()


def _are_cached(reads: Sequence[Read], files: LocalFiles) -> bool:
    """By the first and the last read; False where a file cannot be asked: reading says why."""
    try:
        return all(
            files.has_cached(read.file, read.offset, read.num_bytes)
            for read in (*reads[:1], *reads[-1:])
        )
    except OSError:
        return False


def _as_rows(data: memoryview, dtype: DType, shape: tuple[int, ...]) -> Tensor:
    """Whole rows of a tensor of `shape`, in the memory of `data` if that is aligned for them."""
    flat = torch.frombuffer(data, dtype=torch.uint8)
    if flat.data_ptr() % dtype.itemsize:
        flat = flat.clone()
    return flat.view(dtype).view(-1, *shape[1:])


def _warn_of_surplus(checkpoint: Checkpoint, wanted: frozenset[str], config: ModelConfig) -> None:
    surplus = {name for name in checkpoint.names - wanted if not _DERIVED.search(name)}
    if config.tie_word_embeddings:
        surplus.discard("lm_head.weight")
    if surplus:
        names = [shown(name) for name in sorted(surplus)]
        _log.warning("%s: not used: %s", checkpoint.directory, listed(names))
