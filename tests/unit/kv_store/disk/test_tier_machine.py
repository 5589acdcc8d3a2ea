"""Random lives of a tier, with restarts, kills and damage; beside it, a set of what it has."""

import shutil
import tempfile
from pathlib import Path

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from rtp_serve.kv_cache.block import BlockHash
from rtp_serve.kv_store.disk.pages import PAGE_BYTES
from rtp_serve.kv_store.disk.record import record_bytes
from tests.unit.kv_store.blocks import make_chain
from tests.unit.kv_store.disk.faults import Killed, MortalIO
from tests.unit.kv_store.disk.tiers import (
    BLOCK_BYTES,
    MAX_BYTES,
    PER_SEGMENT,
    SETTINGS,
    disk_bytes,
    make_tier,
    put,
    read,
    segment_files,
)

CHAINS = [make_chain(PER_SEGMENT + 3, str(i)) for i in range(12)]
KEYS = {key for chain in CHAINS for key in chain}
WHICH = st.integers(0, len(CHAINS) - 1)


class TierMachine(RuleBasedStateMachine):
    """`there` is what can be found; `damaged` what may then turn out to be other bytes."""

    @initialize()
    def start(self) -> None:
        self.directory = Path(tempfile.mkdtemp(prefix="disk-tier-"))
        self.there: set[BlockHash] = set()
        self.damaged: set[BlockHash] = set()
        self.own(MortalIO())

    def own(self, mortal: MortalIO) -> None:
        self.mortal = mortal
        self.tier = make_tier(self.directory, io=mortal.io)

    def found(self) -> set[BlockHash]:
        """Without a use of any."""
        return {key for key in KEYS if key in self.tier._index}

    def may_evict(self, num_blocks: int) -> bool:
        room = MAX_BYTES - self.tier.stats().used_bytes
        return room < num_blocks * record_bytes(BLOCK_BYTES) + 5 * SETTINGS.file_bytes

    @rule(which=WHICH, length=st.integers(1, PER_SEGMENT + 3))
    def put(self, which: int, length: int) -> None:
        chain = CHAINS[which][:length]
        may_evict = self.may_evict(length)
        are_there = put(self.tier, chain)
        found = self.found()
        assert are_there == tuple(key in found for key in chain)
        assert are_there[-1], "what came last was evicted first"
        assert found <= self.there | set(chain)
        if not may_evict:
            assert found == self.there | set(chain)
        self.damaged &= found
        self.there = found

    @rule(first=WHICH)
    def fill(self, first: int) -> None:
        """More than fits."""
        for i in range(len(CHAINS)):
            self.put((first + i) % len(CHAINS), PER_SEGMENT + 3)

    @rule(which=WHICH, start=st.integers(0, PER_SEGMENT))
    def look_up_and_read(self, which: int, start: int) -> None:
        chain = CHAINS[which][start:]
        locations = self.tier.lookup(chain)
        num_there = next((i for i, key in enumerate(chain) if key not in self.there), len(chain))
        assert [each.key for each in locations] == chain[:num_there]
        for location, outcome in zip(locations, read(self.directory, locations), strict=True):
            assert outcome == "hit" or location.key in self.damaged, f"{location}: {outcome}"
            if outcome != "hit":
                assert self.tier.quarantine(location)
                self.there.discard(location.key)
                self.damaged.discard(location.key)
        assert self.found() == self.there

    @rule(num_bytes=st.integers(1, 200_000))
    def trim(self, num_bytes: int) -> None:
        freed = self.tier.trim(num_bytes)
        assert freed >= num_bytes or not segment_files(self.directory)
        found = self.found()
        assert found <= self.there
        self.damaged &= found
        self.there = found

    @rule()
    def restart(self) -> None:
        self.tier.close()
        self.own(MortalIO())
        self.check_restarted()

    @rule(which=WHICH, dies_in=st.integers(1, 12), is_torn=st.booleans())
    def put_and_be_killed(self, which: int, dies_in: int, is_torn: bool) -> None:
        chain = CHAINS[which]
        may_evict = self.may_evict(len(chain))
        self.tier.close()
        self.own(MortalIO(is_torn=is_torn))
        self.check_restarted()
        before = self.there
        self.mortal.dies_at = self.mortal.num_changes + dies_in
        try:
            put(self.tier, chain)
            self.mortal.die()
        except Killed:
            pass
        self.own(MortalIO())
        found = self.found()
        assert found <= before | set(chain) | self.damaged
        if not may_evict and not self.damaged:
            assert found >= before
        self.damaged &= found
        self.there = found

    @precondition(lambda self: segment_files(self.directory))
    @rule(data=st.data())
    def damage(self, data: st.DataObject) -> None:
        """Some bytes of a page of some segment change, behind the owner's back."""
        path = data.draw(st.sampled_from(segment_files(self.directory)))
        page = data.draw(st.integers(0, path.stat().st_size // PAGE_BYTES - 1))
        with path.open("r+b") as file:
            file.seek(page * PAGE_BYTES + data.draw(st.integers(0, 250)))
            file.write(b"damaged")
        self.damaged |= {
            key
            for key in self.there
            if self.tier._index._by_key[key].location.segment == int(path.stem)
        }

    def check_restarted(self) -> None:
        """Blocks come and go by a restart only if they were damaged, or quarantined before."""
        found = self.found()
        assert self.there - found <= self.damaged, "a restart lost blocks"
        self.damaged |= found - self.there
        self.there = found

    @invariant()
    def is_sound(self) -> None:
        self.tier.check_invariants()
        assert disk_bytes(self.directory) <= MAX_BYTES

    def teardown(self) -> None:
        self.tier.close()
        shutil.rmtree(self.directory)


TierMachine.TestCase.settings = settings(max_examples=25, stateful_step_count=30, deadline=None)
TestTierMachine = TierMachine.TestCase
