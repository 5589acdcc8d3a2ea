import signal
import threading

import pytest

from rtp_serve.interrupt import deferred_interrupt


def test_an_interrupt_waits_for_the_end_of_the_block():
    done = []

    def interrupted_block() -> None:
        with deferred_interrupt():
            signal.raise_signal(signal.SIGINT)
            done.append("block")

    with pytest.raises(KeyboardInterrupt):
        interrupted_block()
    assert done == ["block"]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_without_an_interrupt_nothing_happens():
    with deferred_interrupt():
        pass
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_other_threads_may_use_it():
    done = []

    def work() -> None:
        with deferred_interrupt():
            done.append("block")

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert done == ["block"]
