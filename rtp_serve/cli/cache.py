"""`rtp-serve cache`: the weight store as files: what is there, what may go, what is damaged."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import typer

from rtp_serve.clock import Clock, WallClock
from rtp_serve.config.sizes import parse_bytes
from rtp_serve.errors import ConfigError, CorruptWeights
from rtp_serve.loader.store.directory import StoredFile, StoreDirectory, default_root
from rtp_serve.loader.store.format import Header, read_header
from rtp_serve.loader.store.payload import check_payload

_UNITS = ((86400, "d"), (3600, "h"), (60, "min"))


def list_files(directory: str | None, clock: Clock | None = None) -> None:
    """Print each file's size, type, ages and model, the last used first."""
    store = _open(directory)
    now_s = (clock or WallClock()).wall()
    with _access_errors(store):
        files = store.files()[::-1]
        typer.echo(f"{'file':34}{'size':>10}  {'type':10}{'written':>10}{'used':>10}  model")
        for file in files:
            dtype, model = _described(file)
            ages = f"{_age(now_s - file.written_s):>10}{_age(now_s - file.used_s):>10}"
            typer.echo(f"{file.name:34}{_size(file.num_bytes):>10}  {dtype:10}{ages}  {model}")
    total = _size(sum(file.num_bytes for file in files))
    typer.echo(f"\n{len(files)} files, {total}, in {store.root}")


def remove_files(directory: str | None, max_size: str | None) -> None:
    """Remove leftovers, and down to `max_size` what was not used for longest."""
    store = _open(directory)
    try:
        limit = None if max_size is None else parse_bytes(max_size)
    except ValueError as error:
        raise ConfigError(f"--max-size: {error}") from error
    with _access_errors(store):
        leftovers = store.remove_leftovers()
        removed = [] if limit is None else store.make_room(0, limit)
    for path in leftovers:
        typer.echo(f"removed {path.name}")
    for file in removed:
        typer.echo(f"removed {file.path.name}  {_size(file.num_bytes)}")
    if not leftovers and not removed:
        typer.echo("nothing to remove")


def verify_files(directory: str | None) -> None:
    """Check every byte of every file and move damaged ones aside; exit code 1 if there are any."""
    store = _open(directory)
    is_damaged = False
    with _access_errors(store):
        for file in store.files():
            problem = _problem(store, file)
            is_damaged = is_damaged or problem is not None
            typer.echo(f"{file.name}  {'ok' if problem is None else f'CORRUPT: {problem}'}")
    if is_damaged:
        raise typer.Exit(1)


def _problem(store: StoreDirectory, file: StoredFile) -> str | None:
    with _opened(file.path) as descriptor:
        if descriptor is None:
            return None  # removed meanwhile
        try:
            check_payload(descriptor, _header(descriptor, file))
        except CorruptWeights as error:
            store.quarantine(file.name, os.fstat(descriptor))
            return error.message
    return None


def _header(descriptor: int, file: StoredFile) -> Header:
    header = read_header(descriptor)
    if header.key.name != file.name:
        raise CorruptWeights("it holds other weights than its name says")
    return header


def _described(file: StoredFile) -> tuple[str, str]:
    """The type and the model, or why neither can be told."""
    with _opened(file.path) as descriptor:
        if descriptor is None:
            return "-", "removed"
        try:
            header = _header(descriptor, file)
        except CorruptWeights as error:
            return "-", f"CORRUPT: {error}"
    return header.key.dtype, header.source


@contextmanager
def _opened(path: Path) -> Iterator[int | None]:
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        yield None
        return
    try:
        yield descriptor
    finally:
        os.close(descriptor)


@contextmanager
def _access_errors(store: StoreDirectory) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise ConfigError(f"cannot work on the weight store {store.root}: {error}") from error


def _open(directory: str | None) -> StoreDirectory:
    root = Path(directory).expanduser() if directory else default_root()
    if directory and not root.is_dir():
        raise ConfigError(f"--directory: {directory} is not a directory")
    return StoreDirectory(root)


def _size(num_bytes: int) -> str:
    return f"{num_bytes / (1 << 20):.0f} MiB"


def _age(seconds: float) -> str:
    for unit_s, name in _UNITS:
        if seconds >= 2 * unit_s:
            return f"{seconds / unit_s:.0f} {name}"
    return f"{max(seconds, 0):.0f} s"
