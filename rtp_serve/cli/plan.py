"""`rtp-serve plan`: where the ranks of a configuration's engines go, before anything starts."""

import os
from pathlib import Path

import typer

from rtp_serve.config.model import ModelConfig, read_model_config
from rtp_serve.config.serve_file import read_serve_file
from rtp_serve.config.serving import AppConfig
from rtp_serve.config.sizes import parse_bytes
from rtp_serve.errors import ConfigError
from rtp_serve.loader.hub import resolve
from rtp_serve.worker.placement import Placement, RankPlacement, place

_GIB = 1 << 30


def print_plan(path: str, rank_memory: str | None, shapes: str | None) -> None:
    """Print the placement of every application of ours. Raises ConfigError, also if something does
    not fit."""
    file = read_serve_file(path)
    ours = [each for each in file.applications if each.is_ours]
    if not ours:
        raise ConfigError(f"{path}: none of its applications is one of this package's topologies")
    pools = [(each.name, *pool) for each in ours for pool in each.config.pools]
    num_unfit = 0
    for application, deployment, config in pools:
        model = _shapes(config, shapes)
        placement = place(model, config.engine, _rank_memory(config, rank_memory))
        typer.echo(f"application {application!r}, {deployment}: {config.engine.model}")
        typer.echo(table(placement, config))
        num_unfit += not placement.fits
    if num_unfit:
        raise ConfigError(f"{path}: {num_unfit} of {len(pools)} deployments do not fit")


def table(placement: Placement, config: AppConfig) -> str:
    """One line a rank, then what is common to all and what is wrong."""
    parallel, capacity = placement.config.parallel, placement.capacity
    lines = [
        f"{placement.model.architecture}, {capacity.spec.format}, tp {parallel.tp} * "
        f"ep {parallel.ep} = {parallel.world_size} ranks a replica, "
        f"each with a bundle of {_bundle(config)}",
        f"{'rank':>4}{'bundle':>8}{'heads':>10}{'kv heads':>10}{'experts':>10}"
        f"{'weights':>12}{'KV':>12}{'workspace':>12}{'total':>12}",
        *map(_line, placement.ranks),
        f"{capacity.num_blocks} KV blocks of {capacity.spec.block_size} tokens; "
        f"a sequence of up to {capacity.max_model_len} tokens",
    ]
    memory = placement.rank_memory_bytes
    if memory is None:
        lines.append("what a rank has is not known here: say it with --rank-memory")
    elif placement.fits:
        spare = memory - placement.largest.total_bytes
        lines.append(f"fits: each rank has {_size(memory)}, the fullest keeps {_size(spare)}")
    else:
        missing = placement.largest.total_bytes - memory
        lines.append(
            f"DOES NOT FIT: each rank has {_size(memory)}, "
            f"rank {placement.largest.part.rank} lacks {_size(missing)}"
        )
        remedies = list(placement.remedies())
        lines += [f"  would fit with {remedy}" for remedy in remedies]
        if not remedies:
            lines.append("  no number of ranks that the model can be divided among would do")
    return "\n".join(lines)


def _line(rank: RankPlacement) -> str:
    part = rank.part
    sizes = rank.weight_bytes, rank.kv_bytes, rank.workspace_bytes, rank.total_bytes
    return (
        f"{part.rank:>4}{part.rank:>8}{_span(part.heads):>10}{_span(part.kv_heads):>10}"
        f"{_span(part.experts.span if part.experts else (0, 0)):>10}"
        + "".join(f"{_size(size):>12}" for size in sizes)
    )


def _bundle(config: AppConfig) -> str:
    replica = config.replica
    parts = {"CPU": replica.num_cpus, "GPU": replica.num_gpus, **replica.resources}
    return " + ".join(f"{amount:g} {name}" for name, amount in parts.items() if amount) or "nothing"


def _shapes(config: AppConfig, shapes: str | None) -> ModelConfig:
    if shapes is not None:
        path = Path(shapes)
        return read_model_config(path if path.is_dir() else path.parent)
    engine = config.engine
    return read_model_config(resolve(engine.model, engine.revision, files="tokenizer"))


def _rank_memory(config: AppConfig, rank_memory: str | None) -> int | None:
    """Ranks without GPU share this machine's memory, if nobody says otherwise."""
    if rank_memory is not None:
        try:
            return parse_bytes(rank_memory)
        except ValueError as error:
            raise ConfigError(f"--rank-memory: {error}") from error
    if config.replica.num_gpus:
        return None
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return machine // config.engine.parallel.world_size


def _span(span: tuple[int, int]) -> str:
    begin, end = span
    return f"{begin}-{end - 1}" if end > begin else "-"


def _size(num_bytes: int) -> str:
    return f"{num_bytes / _GIB:.2f} GiB"
