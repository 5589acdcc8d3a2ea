"""Processes as /proc shows them: trees, memory, CPU time; and stopping them for a while."""

import os
import signal
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

_PROC = Path("/proc")


def descendants(root: int) -> list[int]:
    """`root` and all processes below it."""
    children: dict[int, list[int]] = {}
    for entry in _PROC.iterdir():
        if entry.name.isdigit():
            with suppress(OSError):
                children.setdefault(int(_stat(int(entry.name))[1]), []).append(int(entry.name))
    found, open_pids = [], [root]
    while open_pids:
        pid = open_pids.pop()
        found.append(pid)
        open_pids += children.get(pid, [])
    return found


def below(root: int, marker: str) -> list[int]:
    """The processes of `root`'s tree whose command line has `marker`, and all below them; the
    whole tree if none has."""
    tree = descendants(root)
    chosen = [pid for pid in tree if marker in command_line(pid)]
    return sorted({each for pid in chosen for each in descendants(pid)}) or tree


def command_line(pid: int) -> str:
    """Empty for a process that is gone."""
    try:
        return (_PROC / str(pid) / "cmdline").read_bytes().replace(b"\0", b" ").decode()
    except OSError:
        return ""


def send_all(pids: list[int], number: signal.Signals) -> None:
    """Signal those that are still there."""
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, number)


def cpu_jiffies(pids: list[int]) -> int:
    """User and system time so far."""
    total = 0
    for pid in pids:
        with suppress(OSError):
            total += sum(map(int, _stat(pid)[11:13]))
    return total


def _stat(pid: int) -> list[str]:
    """The fields after the name: state, parent, …"""
    return (_PROC / str(pid) / "stat").read_text().rsplit(")", 1)[1].split()


@dataclass(frozen=True, slots=True)
class Memory:
    """Resident memory of some processes, shared pages divided among their users."""

    pss_bytes: int
    largest_region_bytes: int
    """Resident part of the largest single mapping."""

    largest_region_size: int
    """All of it."""

    def beyond(self, kv_bytes: int) -> int:
        """Without the KV cache: the resident part of the mapping that holds all of it, if one is
        large enough; otherwise the cache lies in several and is taken to be resident whole."""
        if self.largest_region_size >= kv_bytes:
            return self.pss_bytes - min(kv_bytes, self.largest_region_bytes)
        return self.pss_bytes - kv_bytes


def memory(pids: list[int]) -> Memory:
    """Of all of `pids` together; those that are gone count nothing."""
    pss = largest = largest_size = 0
    for pid in pids:
        try:
            text = (_PROC / str(pid) / "smaps").read_text()
        except OSError:
            continue
        found = parse_smaps(text)
        pss += found.pss_bytes
        if found.largest_region_size > largest_size:
            largest, largest_size = found.largest_region_bytes, found.largest_region_size
    return Memory(pss, largest, largest_size)


def mapped_pss_bytes(pid: int, name: str) -> int:
    """Of the process's mappings of files whose path has `name`, shared pages divided."""
    return parse_mapped((_PROC / str(pid) / "smaps").read_text(), name)


def parse_mapped(text: str, name: str) -> int:
    """Of one process's smaps."""
    total, is_counted = 0, False
    for line in text.splitlines():
        first, _, value = line.partition(" ")
        if "-" in first and not first.endswith(":"):
            is_counted = name in line
        elif first == "Pss:" and is_counted:
            total += _kilobytes(value)
    return total


def parse_smaps(text: str) -> Memory:
    """Of one process."""
    pss = size = largest = largest_size = 0
    for line in text.splitlines():
        name, _, value = line.partition(":")
        if name == "Size":
            size = _kilobytes(value)
        elif name == "Rss" and size > largest_size:
            largest, largest_size = _kilobytes(value), size
        elif name == "Pss":
            pss += _kilobytes(value)
    return Memory(pss, largest, largest_size)


def _kilobytes(value: str) -> int:
    return int(value.split()[0]) << 10
