"""How much memory the system would give this process: of the machine's, and of its container's.

Shared memory's own limit does not say: by default it is half of the machine's memory, whoever has
the other half, and a container's pages there count as its own.
"""

from pathlib import Path

_MEMINFO = Path("/proc/meminfo")
_CGROUP_ROOT = Path("/sys/fs/cgroup")


def available_bytes(meminfo: Path = _MEMINFO, cgroup_root: Path = _CGROUP_ROOT) -> int:
    """What can be had without taking it from anybody but the page cache."""
    found = [_value_of(meminfo, "MemAvailable:", unit=1024), _left_in_container(cgroup_root)]
    return max(0, min((each for each in found if each is not None), default=0))


def _left_in_container(root: Path) -> int | None:
    """None without a limit. Pages of files that were not used lately are as good as free."""
    for directory, limit, usage, idle in (
        (root, "memory.max", "memory.current", "inactive_file"),
        (root / "memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    ):
        limit_bytes, used_bytes = _number(directory / limit), _number(directory / usage)
        if limit_bytes is not None and used_bytes is not None:
            return limit_bytes - used_bytes + (_value_of(directory / "memory.stat", idle) or 0)
    return None


def _number(file: Path) -> int | None:
    """None if there is no such file, or no number in it (`max`)."""
    text = _text(file).strip()
    return int(text) if text.isdecimal() else None


def _value_of(file: Path, name: str, unit: int = 1) -> int | None:
    """Of a line that begins with the name and goes on with a number."""
    for line in _text(file).splitlines():
        words = line.split()
        if words[:1] == [name]:
            return int(words[1]) * unit
    return None


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="ascii")
    except OSError:
        return ""
