import os
from dataclasses import replace
from pathlib import Path

import pytest

from rtp_serve.errors import DiskUnavailable
from rtp_serve.kv_store.disk.health import TierState
from rtp_serve.kv_store.disk.pages import PAGE_BYTES
from rtp_serve.kv_store.disk.reader import ReadOutcome
from rtp_serve.kv_store.disk.settings import DiskSettings
from tests.unit.kv_store.blocks import make_chain
from tests.unit.kv_store.disk.tiers import (
    MAX_BYTES,
    PER_SEGMENT,
    SETTINGS,
    blocks_of,
    disk_bytes,
    make_tier,
    put,
    read,
    readable,
    segment_files,
)


def test_blocks_that_were_put_are_found_and_read(tmp_path: Path) -> None:
    chain = make_chain(2 * PER_SEGMENT + 1)
    with make_tier(tmp_path) as tier:
        assert put(tier, chain) == (True,) * len(chain)
        assert readable(tier, tmp_path, chain) == len(chain)
        assert len(segment_files(tmp_path)) == 3
        tier.check_invariants()


def test_a_chain_is_found_up_to_its_first_gap(tmp_path: Path) -> None:
    chain = make_chain(4)
    with make_tier(tmp_path) as tier:
        blocks = blocks_of(chain)
        tier.put([blocks[0], blocks[1], blocks[3]])
        assert [each.key for each in tier.lookup(chain)] == chain[:2]
        assert [each.key for each in tier.lookup(chain[3:])] == chain[3:]
        assert tier.lookup(chain[2:]) == []
        assert (tier.stats().counts.hits, tier.stats().counts.misses) == (3, 4)


def test_blocks_are_found_again_after_a_restart(tmp_path: Path) -> None:
    chain = make_chain(PER_SEGMENT + 2)
    with make_tier(tmp_path) as tier:
        put(tier, chain)
        locations = tier.lookup(chain)
    with make_tier(tmp_path) as tier:
        assert tier.lookup(chain) == locations
        assert readable(tier, tmp_path, chain) == len(chain)
        tier.check_invariants()


def test_a_block_that_is_there_is_not_written_again(tmp_path: Path) -> None:
    chain = make_chain(2)
    with make_tier(tmp_path) as tier:
        put(tier, chain)
        written = tier.stats().counts.written_bytes
        assert tier.put(blocks_of(chain) * 2) == (True,) * 4
        assert tier.stats().counts.written_bytes == written


def test_a_block_that_is_not_whole_is_refused(tmp_path: Path) -> None:
    good, bad = blocks_of(make_chain(2))
    bad = replace(bad, payload=good.payload)
    with make_tier(tmp_path) as tier:
        assert tier.put([good, bad]) == (True, False)
        assert tier.stats().counts.refused == 1


def test_a_block_larger_than_a_segment_is_refused(tmp_path: Path) -> None:
    with make_tier(tmp_path) as tier:
        assert tier.put(blocks_of(make_chain(1), num_bytes=SETTINGS.file_bytes)) == (False,)
        assert tier.stats().state is TierState.READY


def test_the_oldest_blocks_go_when_the_cap_is_reached(tmp_path: Path) -> None:
    chains = [make_chain(PER_SEGMENT, str(i)) for i in range(30)]
    with make_tier(tmp_path) as tier:
        for chain in chains:
            assert all(put(tier, chain))
            assert disk_bytes(tmp_path) <= MAX_BYTES
            tier.check_invariants()
        there = [readable(tier, tmp_path, chain) == PER_SEGMENT for chain in chains]
        assert there == sorted(there), "the newest are there"
        assert 8 <= sum(there) < 30
        assert tier.stats().used_bytes > MAX_BYTES - 3 * SETTINGS.file_bytes


def test_blocks_that_are_used_outlive_those_that_are_not(tmp_path: Path) -> None:
    used = make_chain(2, "used")
    with make_tier(tmp_path) as tier:
        put(tier, used)
        for i in range(40):
            assert readable(tier, tmp_path, used) == 2, i
            put(tier, make_chain(PER_SEGMENT, str(i)))
        assert tier.stats().counts.rewritten >= 2
        tier.check_invariants()


def test_a_chain_in_use_that_lies_in_many_segments_stays_whole(tmp_path: Path) -> None:
    used = make_chain(20, "used")
    with make_tier(tmp_path) as tier:
        for i in range(60):
            length = min(i + 1, len(used))
            tier.lookup(used)
            assert all(put(tier, used[:length]))
            put(tier, make_chain(PER_SEGMENT, str(i)))
            assert readable(tier, tmp_path, used) == length, i
            tier.check_invariants()


def test_blocks_that_another_tier_gave_are_in_use(tmp_path: Path) -> None:
    used = make_chain(3, "used")
    with make_tier(tmp_path) as tier:
        put(tier, used)
        for i in range(40):
            assert tier.lookup(used, len(used)) == []
            put(tier, make_chain(PER_SEGMENT, str(i)))
        assert (tier.stats().counts.hits, tier.stats().counts.misses) == (0, 0)
        assert readable(tier, tmp_path, used) == len(used)


def test_of_what_is_let_go_the_ends_of_chains_go_first(tmp_path: Path) -> None:
    old = make_chain(3 * PER_SEGMENT, "old")
    with make_tier(tmp_path) as tier:
        put(tier, old)
        lengths = []
        for i in range(40):
            put(tier, make_chain(2, str(i)))
            lengths.append(sum(key in tier._index._kept for key in old))
            assert all(key in tier._index._kept for key in old[: lengths[-1]])
        assert lengths[0] == len(old)
        assert len(set(lengths)) > 2
        assert lengths[-1] < len(old)


def test_no_more_is_written_again_than_is_written_once(tmp_path: Path) -> None:
    chains = [make_chain(PER_SEGMENT, str(i)) for i in range(150)]
    with make_tier(tmp_path) as tier:
        for i, chain in enumerate(chains):
            put(tier, chain)
            for each in chains[i % 7 : i : 7]:
                tier.lookup(each)
        tier.check_invariants()
        counts = tier.stats().counts
        assert 0 < counts.rewritten <= counts.stored


def test_a_segment_has_room_for_some_blocks_of_the_size_that_was_told() -> None:
    cap, block = 64 << 20, 1 << 20
    small = DiskSettings(cap, block_bytes=PAGE_BYTES).file_bytes
    assert cap // 200 < small < cap // 100
    assert 3 * block < DiskSettings(cap, block_bytes=block).file_bytes < 5 * block
    assert DiskSettings(cap, block_bytes=cap).file_bytes < cap // 7


def test_a_smaller_cap_is_kept_after_a_restart(tmp_path: Path) -> None:
    large = replace(SETTINGS, max_bytes=4 * MAX_BYTES)
    chains = [make_chain(PER_SEGMENT, str(i)) for i in range(40)]
    with make_tier(tmp_path, large) as tier:
        for chain in chains:
            put(tier, chain)
    assert disk_bytes(tmp_path) > MAX_BYTES
    with make_tier(tmp_path) as tier:
        assert disk_bytes(tmp_path) <= MAX_BYTES
        assert readable(tier, tmp_path, chains[-1]) == PER_SEGMENT
        tier.check_invariants()


def test_trimming_gives_back_the_oldest_segments_at_least(tmp_path: Path) -> None:
    chains = [make_chain(PER_SEGMENT, str(i)) for i in range(4)]
    with make_tier(tmp_path) as tier:
        for chain in chains:
            put(tier, chain)
        before = disk_bytes(tmp_path)
        freed = tier.trim(SETTINGS.file_bytes)
        assert SETTINGS.file_bytes <= freed < 2 * SETTINGS.file_bytes
        assert disk_bytes(tmp_path) == before - freed
        assert readable(tier, tmp_path, chains[-1]) == PER_SEGMENT
        assert tier.lookup(chains[0]) == []
        tier.trim(MAX_BYTES)
        assert segment_files(tmp_path) == []
        assert all(put(tier, chains[0]))
        tier.check_invariants()


def test_space_is_free_at_once_though_a_reader_has_the_segment_open(tmp_path: Path) -> None:
    with make_tier(tmp_path) as tier:
        put(tier, make_chain(2))
        with segment_files(tmp_path)[0].open("rb") as file:
            tier.trim(1)
            assert os.fstat(file.fileno()).st_blocks == 0


def test_only_one_owner_at_a_time_has_a_directory(tmp_path: Path) -> None:
    with make_tier(tmp_path), pytest.raises(DiskUnavailable, match="another process"):
        make_tier(tmp_path)
    make_tier(tmp_path).close()


def test_a_directory_that_cannot_be_made_is_said_to_be_unavailable(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(DiskUnavailable):
        make_tier(tmp_path / "file")


def test_a_closed_tier_finds_and_takes_nothing(tmp_path: Path) -> None:
    chain = make_chain(1)
    tier = make_tier(tmp_path)
    put(tier, chain)
    tier.close()
    tier.close()
    assert tier.lookup(chain) == []
    assert put(tier, make_chain(1, "b")) == (False,)
    assert tier.trim(MAX_BYTES) == 0
    assert len(segment_files(tmp_path)) == 1
    assert tier.stats().state is TierState.CLOSED


def test_files_of_others_stay_and_those_that_are_no_segments_go(tmp_path: Path) -> None:
    other, broken = tmp_path / "notes.segment", tmp_path / f"{7:020}.segment"
    other.write_bytes(b"mine")
    broken.write_bytes(b"x" * 9000)
    with make_tier(tmp_path) as tier:
        assert other.exists()
        assert not broken.exists()
        assert tier.stats().counts.lost_segments == 1


def test_a_damaged_block_is_quarantined_and_can_be_put_again(tmp_path: Path) -> None:
    chain = make_chain(3)
    with make_tier(tmp_path) as tier:
        put(tier, chain)
        locations = tier.lookup(chain)
        _flip(segment_files(tmp_path)[0], locations[1].offset + 4096 + 77)
        assert read(tmp_path, locations) == ["hit", "mismatch", "hit"]
        assert tier.quarantine(locations[1])
        assert len(tier.lookup(chain)) == 1
        assert not tier.quarantine(locations[1]), "it was told before"
        assert put(tier, chain) == (True,) * 3
        assert readable(tier, tmp_path, chain) == 3
        tier.check_invariants()
    with make_tier(tmp_path) as tier:
        assert readable(tier, tmp_path, chain) == 3


def test_a_good_block_is_not_quarantined(tmp_path: Path) -> None:
    chain = make_chain(1)
    with make_tier(tmp_path) as tier:
        put(tier, chain)
        assert not tier.quarantine(tier.lookup(chain)[0])
        assert len(tier.lookup(chain)) == 1


@pytest.mark.parametrize("which", [0, 1])
def test_a_segment_that_somebody_removed_goes_with_all_its_blocks(
    tmp_path: Path, which: int
) -> None:
    chains = [make_chain(PER_SEGMENT, "a"), make_chain(2, "b")]
    with make_tier(tmp_path) as tier:
        for chain in chains:
            put(tier, chain)
        locations = tier.lookup(chains[which])
        segment_files(tmp_path)[which].unlink()
        assert set(read(tmp_path, locations)) == {ReadOutcome.GONE}
        assert tier.quarantine(locations[0])
        assert tier.lookup(chains[which]) == []
        assert readable(tier, tmp_path, chains[1 - which]) == len(chains[1 - which])
        assert all(put(tier, chains[which]))
        tier.check_invariants()


def _flip(path: Path, offset: int) -> None:
    data = bytearray(path.read_bytes())
    data[offset] ^= 0x10
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(data[offset : offset + 1])
