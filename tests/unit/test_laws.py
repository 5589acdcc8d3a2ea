"""The laws that a linter cannot see: what an import really brings along, and how long it takes."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CONTROL_PLANE = [
    "rtp_serve",
    "rtp_serve.config.engine",
    "rtp_serve.engine.async_engine",
    "rtp_serve.disaggregation.decode_transfer",
    "rtp_serve.kv_cache.manager",
    "rtp_serve.kv_store.arena_files",
    "rtp_serve.kv_store.index",
    "rtp_serve.kv_store.opening",
    "rtp_serve.native.rank_group",
    "rtp_serve.native.step_ring",
    "rtp_serve.observability.metrics",
    "rtp_serve.routing.master",
    "rtp_serve.simulation.fleet",
    "rtp_serve.text.stream",
    "rtp_serve.text.chat_template",
    "rtp_serve.loader.hub",
    "rtp_serve.loader.checkpoint",
    "rtp_serve.loader.reader",
    "rtp_serve.cli.cache",
    "rtp_serve.cli.cache_stats",
    "rtp_serve.api.openai_app",
]


def run_python(code: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.parametrize("module", CONTROL_PLANE)
def test_the_control_plane_brings_neither_torch_nor_ray(module: str):
    code = (
        f"import sys, {module}; print([m for m in ('torch', 'ray', 'triton') if m in sys.modules])"
    )
    assert run_python(code) == "[]"


def test_an_engine_brings_no_text():
    """It knows token ids alone, and a replica's memory beside its model is mostly imports."""
    code = (
        "import sys, rtp_serve.build; print([m for m in ('tokenizers', 'jinja2', 'transformers',"
        " 'gguf', 'huggingface_hub', 'sympy', 'torch._dynamo') if m in sys.modules])"
    )
    assert run_python(code) == "[]"


def test_importing_the_package_is_quick():
    """50 ms is the promise; the best of three runs is taken, as a busy machine proves nothing."""
    code = "import time; t = time.perf_counter(); import rtp_serve; print(time.perf_counter() - t)"
    assert min(float(run_python(code)) for _ in range(3)) < 0.05


def test_public_names_are_resolved_on_first_use():
    code = (
        "import rtp_serve; rtp_serve.SamplingParams(top_k=3); rtp_serve.EngineConfig();"
        "print(sorted(rtp_serve.__all__))"
    )
    assert run_python(code) == "['EngineConfig', 'LLM', 'SamplingParams']"


def test_compute_threads_do_not_spin_unless_told_to():
    assert run_python("import os, rtp_serve; print(os.environ['OMP_WAIT_POLICY'])") == "passive"
