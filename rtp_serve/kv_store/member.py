"""Who owns reservations, leases and pins: a process, by its number and the time of its start.

The system gives a process's number again, but not with the same start. An owner of another form
(an application's pins) is nobody whose death could be seen.
"""

import os
import re
from pathlib import Path

_PROC = Path("/proc")
_NAME = re.compile(r"process-(\d+)-(\d+)")
_DEAD = frozenset("ZXx")
"""States of a process that runs no more, whether or not its parent has asked for it."""


def member_name(pid: int | None = None) -> str:
    """The owner's name of a process that is alive, by default this one."""
    pid = os.getpid() if pid is None else pid
    status = _status(pid)
    assert status is not None, f"there is no process {pid}"
    return f"process-{pid}-{status[1]}"


def is_dead(owner: str) -> bool:
    """Whether the owner is a process of this node, and is gone."""
    match = _NAME.fullmatch(owner)
    if match is None:
        return False
    status = _status(int(match[1]))
    return status is None or status[0] in _DEAD or status[1] != int(match[2])


def _status(pid: int) -> tuple[str, int] | None:
    """State, and start in clock ticks since the system's; None if there is no such process."""
    try:
        text = (_PROC / str(pid) / "stat").read_text(encoding="utf-8", errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return None
    fields = text.rpartition(")")[2].split()  # the program's name may contain anything
    return fields[0], int(fields[19])
