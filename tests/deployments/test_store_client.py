"""Members and the KV-store actor of one node, killed and stopped where it hurts."""

import logging
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import ray
from ray.actor import ActorHandle

from deployments.actors import NAMESPACE
from rtp_serve.clock import WallClock
from rtp_serve.kv_store.index_stats import SlabState
from rtp_serve.kv_store.reservation import Refusal, RefusalReason
from tests.deployments.applications import BACK, FRONT, RaySession
from tests.deployments.store_members import CONNECT_S, OtherMember, StoreMember
from tests.unit.kv_store.blocks import make_chain, requests_of

pytestmark = pytest.mark.ray

UNTIL_S = 20.0


def until(is_so: Callable[[], bool]) -> None:
    """Look again and again."""
    clock = WallClock()
    began_s = clock.monotonic()
    while not is_so():
        assert clock.monotonic() - began_s < UNTIL_S, "it never came to be so"
        threading.Event().wait(0.02)


def pid_of(member: StoreMember) -> int:
    """The store actor's process."""
    actor = member.client.connection.actor
    assert actor is not None
    return ray.get(actor.join.remote(member.owner))


def where(actor: ActorHandle) -> tuple[str, bool]:
    """The actor's node, and whether it has torch."""

    def look(_: object) -> tuple[str, bool]:
        return ray.get_runtime_context().get_node_id(), "torch" in sys.modules

    return ray.get(actor.__ray_call__.remote(look))


def exists(member: StoreMember) -> bool:
    """Whether Ray knows the member's store actor."""
    try:
        ray.get_actor(member.plan.actor_name, NAMESPACE)
    except ValueError:
        return False
    return True


@contextmanager
def other_member(*arguments: object, on: str = FRONT) -> Iterator[ActorHandle]:
    """Another process, by default of the same node."""
    other = ray.remote(OtherMember).options(num_cpus=0, resources={on: 1}).remote(*arguments)
    yield other
    ray.kill(other)


@pytest.fixture(scope="module")
def cache_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def here(session: RaySession, cache_root: Path) -> Iterator[StoreMember]:
    member = StoreMember("members", cache_root, idle_exit_s=1.0)
    yield member
    member.opened.close()
    until(lambda: not exists(member))


@pytest.fixture(scope="module")
def other(here: StoreMember, cache_root: Path) -> Iterator[ActorHandle]:
    with other_member("members", cache_root) as member:
        yield member


def test_two_processes_share_blocks_through_one_actor(here: StoreMember, other: ActorHandle):
    chain = make_chain(20, "shared")
    assert here.put(chain[:12]) == 12
    assert ray.get(other.count_right.remote(chain)) == 12
    assert ray.get(other.put.remote(chain)) == 8
    assert here.count_right(chain) == 20
    assert here.client.stats().host.counts.stored == 20


def test_every_node_has_its_own_store_which_has_no_torch(here: StoreMember, cache_root: Path):
    chain = make_chain(4, "here alone")
    assert here.put(chain) == 4
    with other_member("members", cache_root, 0.4, on=BACK) as other:
        assert ray.get(other.count_right.remote(chain)) == 0
        actor = ray.get_actor(ray.get(other.store_name.remote()), NAMESPACE)
        assert where(actor) == (ray.get(other.node.remote()), False)
    assert where(here.client.connection.actor) == (here.plan.node, False)


def test_a_killed_actor_finds_nothing_and_then_everything_again(
    here: StoreMember, caplog: pytest.LogCaptureFixture
):
    chain = make_chain(20, "survives")
    assert here.put(chain) == 20
    number = pid_of(here)
    with caplog.at_level(logging.INFO, "deployments.store_connection"):
        os.kill(number, signal.SIGKILL)
        until(lambda: here.client.connection.actor is None or not len(here.find(chain)))
        assert here.client.reserve(requests_of(chain), here.owner) == tuple(
            Refusal(key, RefusalReason.FULL) for key in chain
        )
        assert here.client.complete(()) == ()
        assert here.client.pin(chain, here.owner, None) == 0
        assert here.client.trim(1) == 0
        assert here.client.stats().num_slabs == 0
        assert here.client.connection.wait(CONNECT_S)
    assert pid_of(here) != number
    assert here.count_right(chain) == 20
    lost, found = (record.getMessage() for record in caplog.records)
    assert "does not answer" in lost
    assert "answers again" in found


def test_what_a_killed_member_held_is_free_again(here: StoreMember, cache_root: Path):
    read, written = make_chain(10, "read"), make_chain(10, "written")
    here.put(read)
    before = here.client.stats().host
    with other_member("members", cache_root) as other:
        assert ray.get(other.hold.remote(read, written)) == (10, 10)
        held = here.client.stats().host
        assert held.num_leases == before.num_leases + 1
        assert held.slabs_by_state[SlabState.RESERVED] == 10
        os.kill(ray.get(other.pid.remote()), signal.SIGKILL)

        def is_as_before() -> bool:
            now = here.client.stats().host
            return (now.num_leases, now.slabs_by_state) == (
                before.num_leases,
                before.slabs_by_state,
            )

        until(is_as_before)


def test_a_stopped_actor_costs_one_timeout_and_is_found_again(here: StoreMember):
    chain = make_chain(5, "stopped")
    assert here.put(chain) == 5
    clock = WallClock()
    number = pid_of(here)
    os.kill(number, signal.SIGSTOP)
    try:
        began_s = clock.monotonic()
        assert not len(here.find(chain))
        first_s = clock.monotonic() - began_s
        for _ in range(100):
            assert not len(here.find(chain))
        others_s = clock.monotonic() - began_s - first_s
    finally:
        os.kill(number, signal.SIGCONT)
    assert first_s < 1.0
    assert others_s < first_s
    assert here.client.connection.wait(CONNECT_S)
    assert here.count_right(chain) == 5


def test_an_actor_ends_after_its_last_member_and_leaves_no_file(
    session: RaySession, cache_root: Path
):
    member = StoreMember("last", cache_root, idle_exit_s=0.3)
    number = pid_of(member)
    with other_member("last", cache_root) as other:
        assert ray.get(other.put.remote(make_chain(3))) == 3
        member.opened.close()
        assert ray.get(other.count_right.remote(make_chain(3))) == 3
        os.kill(ray.get(other.pid.remote()), signal.SIGKILL)
        until(lambda: not exists(member))
    until(lambda: not Path(f"/proc/{number}").exists())
    assert not member.opened.member.path.exists()
