"""The owner is killed at every change of the disk, and the next one has all that was promised."""

from pathlib import Path

import pytest

from rtp_serve.kv_store.disk.tier import DiskTier
from tests.unit.kv_store.blocks import make_chain
from tests.unit.kv_store.disk.faults import Killed, MortalIO
from tests.unit.kv_store.disk.tiers import (
    MAX_BYTES,
    PER_SEGMENT,
    disk_bytes,
    make_tier,
    put,
    readable,
)

CHAINS = [make_chain(PER_SEGMENT - 1, str(i)) for i in range(16)]


def _live(directory: Path, mortal: MortalIO, promised: set[int]) -> None:
    """A life with a bit of everything. Chains that are `promised` cannot be evicted by what is done
    next: of more than eight segments, they are in the newest."""
    tier = make_tier(directory, io=mortal.io)
    for i, chain in enumerate(CHAINS):
        assert all(put(tier, chain))
        promised.add(i)
        promised.discard(i - 4)
        for each in CHAINS[: i + 1 : 3]:
            tier.lookup(each)  # to be rewritten
        if i == 12:
            tier.trim(100_000)
    tier.close()


def _num_changes(directory: Path) -> int:
    mortal = MortalIO()
    _live(directory, mortal, set())
    return mortal.num_changes


@pytest.mark.parametrize("is_torn", [False, True])
def test_an_owner_may_be_killed_at_any_change_of_the_disk(tmp_path: Path, is_torn: bool) -> None:
    num_changes = _num_changes(tmp_path / "whole")
    assert num_changes > 80
    for dies_at in range(1, num_changes + 1):
        directory = tmp_path / str(dies_at)
        promised: set[int] = set()
        with pytest.raises(Killed):
            _live(directory, MortalIO(dies_at, is_torn=is_torn), promised)
        if directory.exists():
            assert disk_bytes(directory) <= MAX_BYTES
        with make_tier(directory, io=MortalIO().io) as tier:
            tier.check_invariants()
            for i in promised:
                assert readable(tier, directory, CHAINS[i]) == len(CHAINS[i]), f"{dies_at}, {i}"
            for chain in CHAINS:
                assert readable(tier, directory, chain) == len(tier.lookup(chain))
            assert all(put(tier, CHAINS[0]))
            assert disk_bytes(directory) <= MAX_BYTES
            tier.check_invariants()


def test_an_owner_may_be_killed_at_any_change_while_it_starts(tmp_path: Path) -> None:
    with pytest.raises(Killed):
        _live(tmp_path, MortalIO(60), set())
    found = [0] * len(CHAINS)
    for dies_at in range(1, 4):
        with pytest.raises(Killed):
            make_tier(tmp_path, io=MortalIO(dies_at).io)
        tier: DiskTier = make_tier(tmp_path)
        lengths = [readable(tier, tmp_path, chain) for chain in CHAINS]
        assert sum(lengths) >= sum(found)
        found = lengths
        tier.close()
    assert sum(found) > PER_SEGMENT
