"""The compiled module: its stub, its levels, the GIL it releases."""

import ast
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch

import rtp_kernels
from rtp_serve.ops import compiled
from tests.kernels.batches import Heads, make_batch, make_tokens
from tests.kernels.levels import ISAS, using


def test_the_stub_names_what_the_module_has():
    stub = ast.parse(Path(rtp_kernels.__file__).with_name("_C.pyi").read_text())
    declared = {
        node.name for node in stub.body if isinstance(node, ast.FunctionDef | ast.ClassDef)
    } - {"Array"}
    actual = {name for name in dir(rtp_kernels._C) if not name.startswith("__")}
    assert declared == actual


def test_the_active_level_is_one_that_the_cpu_has():
    assert rtp_kernels.isa() in ISAS
    assert ISAS[0] == "portable"


def test_an_unknown_level_names_those_there_are():
    with pytest.raises(ValueError, match=r"'sse9' is not available; this CPU has: portable"):
        rtp_kernels.set_isa("sse9")


def test_the_environment_chooses_the_level():
    assert _in_new_process("import rtp_kernels; print(rtp_kernels.isa())", "portable") == "portable"


def test_a_wrong_level_in_the_environment_is_a_config_error():
    program = (
        "from rtp_serve.errors import ConfigError\n"
        "from rtp_serve.ops.dispatch import backend\n"
        "try:\n    backend()\nexcept ConfigError as error:\n    print(error)\n"
    )
    assert "RTP_SERVE_ISA: instruction set 'fast'" in _in_new_process(program, "fast")


def test_the_gil_is_free_while_a_kernel_runs():
    """Another thread counts while one long call is under way."""
    heads = Heads(8, 8, 64)
    batch = make_batch(heads, [(make_tokens(heads, 1500, torch.float32), 1500)])
    started, done = threading.Event(), threading.Event()

    def attend() -> None:
        with using("portable", num_threads=1):
            started.set()
            batch.attend(compiled)
        done.set()

    worker = threading.Thread(target=attend)
    worker.start()
    started.wait()
    laps = 0
    while not done.is_set():
        laps += 1
    worker.join()
    assert laps > 1000


def _in_new_process(program: str, isa: str) -> str:
    result = subprocess.run(
        [sys.executable, "-c", f"import torch\n{program}"],
        env={**os.environ, "RTP_SERVE_ISA": isa},
        capture_output=True,
        text=True,
        check=True,
    )
    return result.stdout.strip()
