import os
import signal
import subprocess
import sys

from benchmarks.processes import Memory, below, descendants, memory, parse_smaps, send_all

SMAPS = """\
7f00-7f10 rw-p 00000000 00:00 0
Size:            1000 kB
Rss:              600 kB
Pss:              500 kB
7f20-7f30 r--p 00000000 08:01 77 /lib/x.so
Size:              40 kB
Rss:               40 kB
Pss:               10 kB
"""


def test_a_memory_map_is_summed_and_its_largest_region_found():
    found = parse_smaps(SMAPS)
    assert found == Memory(510 << 10, 600 << 10, 1000 << 10)


def test_only_the_resident_part_of_the_kv_region_is_left_out():
    found = parse_smaps(SMAPS)
    assert found.beyond(900 << 10) == (510 - 600) << 10
    assert found.beyond(500 << 10) == (510 - 500) << 10


def test_a_cache_in_several_regions_is_left_out_whole():
    assert parse_smaps(SMAPS).beyond(2000 << 10) == (510 - 2000) << 10


def test_a_tree_is_found_by_the_command_line_and_halted_as_a_whole():
    child = "import time; time.sleep(60)  # the replica"
    parent = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])"
    process = subprocess.Popen([sys.executable, "-c", f"print(flush=True); {parent}"], stdout=-1)
    try:
        assert process.stdout is not None
        process.stdout.readline()
        while len(tree := descendants(process.pid)) < 2:
            pass
        assert tree[0] == process.pid
        assert below(process.pid, "no such marker") == tree
        send_all(tree, signal.SIGSTOP)
        while os.waitid(os.P_PID, process.pid, os.WSTOPPED) is None:
            pass
        assert memory(tree).pss_bytes > 1 << 20
    finally:
        send_all(descendants(process.pid), signal.SIGKILL)
        process.communicate()
