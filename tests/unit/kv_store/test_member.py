import os
import subprocess
import sys

from rtp_serve.kv_store.member import is_dead, member_name


def test_this_process_is_alive_under_its_name():
    assert member_name() == member_name(os.getpid())
    assert not is_dead(member_name())


def test_a_killed_process_is_dead_before_and_after_its_parent_asks():
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    name = member_name(process.pid)
    assert not is_dead(name)
    process.kill()
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    assert is_dead(name)
    process.communicate()
    assert is_dead(name)


def test_another_process_with_a_dead_one_s_number_is_not_it():
    start = member_name().rpartition("-")[2]
    assert is_dead(f"process-{os.getpid()}-{int(start) + 1}")


def test_an_owner_that_is_no_process_is_not_known_to_be_dead():
    for owner in ("api", "", "process-1", "process-x-1", "process-1-2-3"):
        assert not is_dead(owner)
