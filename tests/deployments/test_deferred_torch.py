"""Modules of torch that an engine process does without: that it does, and that they still work."""

import subprocess
import sys
from pathlib import Path

import pytest

from deployments.deferred_torch import DEFERRED
from tests.checkpoints import write_checkpoint

_ENGINE = """
import inspect, sys
from deployments.deferred_torch import DEFERRED, defer_unused_torch, is_deferred
defer_unused_torch()
from rtp_serve.build import build_core
from rtp_serve.clock import WallClock
from rtp_serve.config.engine import EngineConfig
from rtp_serve.engine.request import Request
from rtp_serve.engine.sampling_params import SamplingParams

store = {"directory": sys.argv[2]}
config = {"model": sys.argv[1], "cache": {"memory": 1 << 20}, "weight_store": store}
core = build_core(EngineConfig.model_validate(config))
core.add_request(Request("r", (1, 2, 3), SamplingParams(max_tokens=3, ignore_eos=True), 0))
while core.has_work:
    assert not any(delta.error for delta in core.step())
core.shutdown()
inspect.getmodule(inspect.currentframe())  # reads of every module what it has before it runs
print(*sorted(name for name in DEFERRED & set(sys.modules) if not is_deferred(name)))
"""

_THREADS = """
import sys
from threading import Barrier, Thread
from deployments.deferred_torch import defer_unused_torch, is_deferred
defer_unused_torch()
import torch
assert is_deferred("torch")
begin, sums = Barrier(4), []

def use():
    begin.wait()
    sums.append(float(torch.nn.functional.relu(torch.ones(3)).sum()))

threads = [Thread(target=use) for _ in range(4)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
assert sums == [3.0] * 4, sums
assert torch.ones(1) == 1 and not is_deferred("torch")
"""

_USE = """
import sys
from deployments.deferred_torch import DEFERRED, defer_unused_torch, is_deferred
defer_unused_torch()
import torch

assert is_deferred("torch")
assert torch.ones(1) == 1
for name in sorted(DEFERRED - {"torch"}, reverse=sys.argv[1] == "reversed"):
    assert getattr(sys.modules[name], "no_such_thing", None) is None
    assert not is_deferred(name), name

assert torch.distributions.Normal(0.0, 1.0).mean == 0
assert list(torch.utils.data.DataLoader([1, 2], batch_size=2))[0].tolist() == [1, 2]
assert torch.masked.sum(torch.ones(3), mask=torch.tensor([True, False, True])) == 2
assert torch.quantization.get_default_qconfig("x86") is not None

class Twice(torch.nn.Module):
    def forward(self, x):
        return torch.nn.functional.softmax(x, -1) * 2

traced = torch.export.export(Twice(), (torch.ones(2, 3),)).module()
assert torch.equal(traced(torch.ones(2, 3)), Twice()(torch.ones(2, 3)))
"""

_PART = """
from deployments.deferred_torch import defer_unused_torch, is_deferred
defer_unused_torch()
import torch.nn
assert not is_deferred("torch")
assert is_deferred("torch.utils.data")
from torch.utils.data.sampler import SequentialSampler
assert not is_deferred("torch.utils.data")
assert list(SequentialSampler("ab")) == [0, 1]
import torch.utils.data
assert torch.utils.data.SequentialSampler is SequentialSampler  # nothing was loaded twice
"""

_EXTENSION = """
from deployments.deferred_torch import defer_unused_torch, is_deferred
defer_unused_torch()
import torch
assert is_deferred("torch")
from torch._C._distributed_c10d import TCPStore
import torch.distributed
assert torch.distributed.TCPStore is TCPStore
assert torch._C.__spec__.loader.path.endswith(".so"), torch._C.__spec__
"""

_PARTS_OF_A_PACKAGE = """
import sys
from threading import Event, Thread
from deployments import deferred_torch

sys.path.insert(0, sys.argv[1])
deferred_torch.DEFERRED = frozenset({"package"})
deferred_torch.PATIENCE_S = 0.2
deferred_torch.defer_unused_torch()
import package

begun, held, errors = Event(), Event(), []

class Watching:
    def find_spec(self, name, path, target=None):  # under the lock of the module `name`
        if name == "package.part":
            held.set()

sys.meta_path.insert(0, Watching())
package.events = begun, held

def import_part():
    begun.wait()
    try:
        import package.part
    except ImportError as error:
        errors.append(str(error))

thread = Thread(target=import_part)
thread.start()
assert package.part.NUMBER == 7
thread.join()
assert len(errors) == 1, errors
assert errors[0].startswith("package is imported by another thread"), errors
"""

_PACKAGE = """
begun, held = events
begun.set()
held.wait()
from package import part
"""


def test_an_engine_that_has_answered_has_run_none_of_them(tmp_path: Path):
    checkpoint, store = write_checkpoint(tmp_path / "model"), tmp_path / "store"
    assert run(_ENGINE, checkpoint, store) == "torch"  # it packs the weights
    assert run(_ENGINE, checkpoint, store) == ""


def test_threads_that_ask_for_torch_at_once_get_all_of_it():
    assert run(_THREADS) == ""


def test_threads_that_import_a_package_and_its_part_do_not_wait_for_ever(tmp_path: Path):
    package = tmp_path / "package"
    package.mkdir()
    (package / "__init__.py").write_text(_PACKAGE)
    (package / "part.py").write_text("NUMBER = 7")
    assert run(_PARTS_OF_A_PACKAGE, tmp_path) == ""


def test_what_is_compiled_is_loaded_once():
    assert run(_EXTENSION) == ""


@pytest.mark.parametrize("order", ["sorted", "reversed"])
def test_each_runs_when_something_is_asked_of_it(order: str):
    assert run(_USE, order) == ""


def test_a_package_runs_before_its_part():
    assert run(_PART) == ""


def test_the_list_is_of_modules_that_there_are():
    code = f"import sys, torch; print(*sorted({set(DEFERRED)!r} - set(sys.modules)))"
    assert run(code) == ""


def run(program: str, *arguments: str | Path) -> str:
    """What it prints, in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments],
        cwd=Path(__file__).parents[2],
        check=False,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()
