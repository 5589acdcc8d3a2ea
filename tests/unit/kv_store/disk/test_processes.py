"""Real processes: an owner that is killed while it writes, and a reader that is none."""

import subprocess
import sys
from pathlib import Path

import pytest

from rtp_serve.errors import DiskUnavailable
from tests.unit.kv_store.blocks import make_chain
from tests.unit.kv_store.disk.tiers import PER_SEGMENT, make_tier, put, readable

ROOT = Path(__file__).parents[4]

OWNER = """
import sys
from pathlib import Path

from tests.unit.kv_store.blocks import make_chain
from tests.unit.kv_store.disk.tiers import PER_SEGMENT, make_tier, put

tier = make_tier(Path(sys.argv[1]))
i = 0
while True:
    assert all(put(tier, make_chain(PER_SEGMENT, str(i))))
    print(i, flush=True)
    i += 1
"""

READER = """
import sys
from pathlib import Path

from rtp_serve.kv_cache.block import BlockHash
from rtp_serve.kv_store.disk.record import DiskLocation
from tests.unit.kv_store.disk.tiers import read

for line in sys.argv[2:]:
    key, segment, offset, num_bytes, checksum = line.split(",")
    place = int(segment), int(offset), int(num_bytes)
    location = DiskLocation(BlockHash(bytes.fromhex(key)), *place, bytes.fromhex(checksum))
    print(*read(Path(sys.argv[1]), [location]))
"""


def test_an_owner_that_is_killed_leaves_its_blocks_and_the_lock(tmp_path: Path) -> None:
    owner = subprocess.Popen(
        [sys.executable, "-c", OWNER, tmp_path], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    assert owner.stdout is not None
    with owner.stdout:
        lines = [owner.stdout.readline() for _ in range(30)]
        with pytest.raises(DiskUnavailable):
            make_tier(tmp_path)
        owner.kill()
        lines += owner.stdout.read().splitlines()
    owner.wait()
    last = int(lines[-1])
    with make_tier(tmp_path) as tier:
        for i in range(last - 3, last + 1):
            assert readable(tier, tmp_path, make_chain(PER_SEGMENT, str(i))) == PER_SEGMENT
        tier.check_invariants()


def test_another_process_reads_by_location_alone(tmp_path: Path) -> None:
    chain = make_chain(2)
    with make_tier(tmp_path) as tier:
        put(tier, chain)
        lines = [
            f"{each.key.hex()},{each.segment},{each.offset},{each.num_bytes},{each.checksum.hex()}"
            for each in tier.lookup(chain)
        ]
        done = subprocess.run(
            [sys.executable, "-c", READER, tmp_path, *lines],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=True,
        )
    assert done.stdout.split() == ["hit", "hit"]
