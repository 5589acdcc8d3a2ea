import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from rtp_serve.errors import CorruptWeights
from rtp_serve.loader.store.guard import WeightGuard


def test_without_work_weights_are_trusted():
    guard = WeightGuard()
    guard.wait()
    guard.check()


def test_weights_serve_until_they_are_known_to_be_wrong_and_never_again():
    guard, may_end = WeightGuard(), threading.Event()

    def fail() -> None:
        may_end.wait()
        raise CorruptWeights("norm differs")

    guard.start(fail, is_awaited=False)
    guard.check()
    may_end.set()
    guard.wait()
    for _ in range(2):
        with pytest.raises(CorruptWeights, match="norm differs"):
            guard.check()


@pytest.mark.parametrize("is_awaited", [True, False])
def test_work_that_nobody_waits_for_has_the_lowest_priority(is_awaited: bool):
    found: list[int] = []
    guard = WeightGuard()
    guard.start(lambda: found.append(os.getpriority(os.PRIO_PROCESS, 0)), is_awaited=is_awaited)
    guard.wait()
    usual = os.getpriority(os.PRIO_PROCESS, 0)
    assert found == [usual if is_awaited else 19]


PROGRAM = """
import sys, time
from rtp_serve.loader.store.guard import WeightGuard

def work():
    print("begun", flush=True)
    sys.stdin.read()
    print("done", flush=True)

WeightGuard().start(work, is_awaited=sys.argv[1] == "awaited")
"""


def test_a_process_ends_after_a_file_is_finished_but_does_not_wait_for_a_check():
    def run(word: str, text: str | None) -> str:
        process = subprocess.Popen(
            [sys.executable, "-c", PROGRAM, word],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=Path(__file__).parents[4],
        )
        if text is None:
            assert process.wait(30) == 0
        return process.communicate(text)[0]

    assert run("awaited", "") == "begun\ndone\n"
    assert "done" not in run("free", None)
