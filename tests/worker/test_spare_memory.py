"""What starting leaves in memory and is given back: code that ran once, and nobody's own pages."""

import subprocess
import sys
from pathlib import Path

from rtp_serve.worker.spare_memory import unwritten_code

_LIBRARIES = Path("/v/torch/lib")

_SMAPS = """\
1000-5000 r-xp 00000000 fe:00 11                       /v/torch/lib/libtorch_cpu.so
Size:                 16 kB
Private_Clean:        12 kB
Private_Dirty:         0 kB
VmFlags: rd ex mr mw me
5000-6000 r--p 00004000 fe:00 11                       /v/torch/lib/libtorch_cpu.so
Private_Dirty:         0 kB
6000-9000 r-xp 00000000 fe:00 12                       /v/torch/lib/libwritten.so
Private_Dirty:         4 kB
9000-a000 r-xp 00000000 fe:00 13                       /v/torch/lib/deeper/libother.so
Private_Dirty:         0 kB
a000-b000 rw-p 00000000 00:00 0
Private_Dirty:         0 kB
b000-f000 r-xp 00000000 fe:00 14                       /v/torch/lib/libc10.so
Private_Dirty:         0 kB
"""

_PROGRAM = """
import re
from pathlib import Path
import torch
from rtp_serve.worker.spare_memory import return_spare_memory

def mapped_kilobytes():
    smaps = Path("/proc/self/smaps").read_text()
    (found,) = re.findall(r" r-xp .*/libtorch_cpu\\.so\\n(?:\\w+: .*\\n)*?Rss: +([0-9]+) kB", smaps)
    return int(found)

def compute():
    return torch.arange(24.0).view(4, 6) @ torch.arange(18.0).view(6, 3)

before, product = mapped_kilobytes(), compute()
return_spare_memory()
after = mapped_kilobytes()
assert torch.equal(compute(), product)
print(before, after)
"""


def test_code_that_nobody_has_written_into_is_found():
    assert list(unwritten_code(_SMAPS, _LIBRARIES)) == [(0x1000, 0x4000), (0xB000, 0x4000)]


def test_code_of_torch_that_only_the_import_ran_is_not_mapped():
    done = subprocess.run(
        [sys.executable, "-c", _PROGRAM],
        cwd=Path(__file__).parents[2],
        check=True,
        capture_output=True,
        text=True,
    )
    before, after = map(int, done.stdout.split())
    assert before > 16 << 10
    assert after < before / 8
