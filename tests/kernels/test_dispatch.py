"""Which implementation serves the ops, and what the numerics plan says of it."""

import logging
import sys
from collections.abc import Iterator

import pytest
import torch

import rtp_kernels
from rtp_serve import ops
from rtp_serve.errors import ConfigError
from rtp_serve.ops import compiled, reference
from rtp_serve.ops.dispatch import Backend, backend, compiled_ops, ops_for
from rtp_serve.ops.plan import numerics_plan
from tests.kernels.levels import DTYPES, random, using


@pytest.fixture(autouse=True)
def _chosen_anew(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.delenv("RTP_SERVE_OPS", raising=False)
    compiled_ops.cache_clear()
    yield
    compiled_ops.cache_clear()


def test_the_kernels_serve_where_they_are_built(caplog: pytest.LogCaptureFixture):
    with caplog.at_level(logging.INFO):
        assert backend() is Backend.COMPILED
        assert ops_for(torch.empty(0)) is compiled
    assert [record.message for record in caplog.records] == [
        f"ops: compiled kernels, {rtp_kernels.isa()}"
    ]


def test_other_devices_are_served_by_the_reference():
    assert ops_for(torch.empty(0, device="meta")) is reference


def test_the_environment_asks_for_the_reference(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("RTP_SERVE_OPS", "reference")
    assert backend() is Backend.REFERENCE
    assert ops_for(torch.empty(0)) is reference


def test_an_unknown_backend_is_a_config_error(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("RTP_SERVE_OPS", "compild")
    with pytest.raises(ConfigError, match=r"RTP_SERVE_OPS='compild'.*did you mean 'compiled'"):
        backend()


def test_missing_kernels_fall_back_with_a_warning(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    monkeypatch.setitem(sys.modules, "rtp_kernels", None)
    assert backend() is Backend.REFERENCE
    assert [record.levelname for record in caplog.records] == ["WARNING"]


def test_missing_kernels_that_were_asked_for_are_a_config_error(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "rtp_kernels", None)
    monkeypatch.setenv("RTP_SERVE_OPS", "compiled")
    with pytest.raises(ConfigError, match="RTP_SERVE_OPS=compiled, but"):
        backend()


@pytest.mark.parametrize("wanted", ["compiled", "reference"])
def test_the_doorway_gives_what_the_chosen_implementation_gives(
    monkeypatch: pytest.MonkeyPatch, wanted: str
):
    monkeypatch.setenv("RTP_SERVE_OPS", wanted)
    implementation = {"compiled": compiled, "reference": reference}[wanted]
    x, weight = random(3, 64), random(64, seed=1)
    expected = implementation.rms_norm(x, weight, 1e-5)
    assert torch.equal(ops.rms_norm(x, weight, 1e-5), expected)
    assert torch.equal(ops.silu_and_mul(x), implementation.silu_and_mul(x))


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_plan_follows_whatever_changes_the_bits(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype
):
    plans = {numerics_plan("bfloat16"), numerics_plan("float32")}
    with using("portable", num_threads=1):
        plans.add(numerics_plan(dtype))
    with using("portable", num_threads=2):
        plans.add(numerics_plan(dtype))
    monkeypatch.setenv("RTP_SERVE_OPS", "reference")
    compiled_ops.cache_clear()
    plans.add(numerics_plan(dtype))
    assert len(plans) == 4


def test_the_plan_can_be_read():
    with using("portable"):
        assert numerics_plan(torch.bfloat16).startswith("v3-compiled-portable-bfloat16-")
    with pytest.raises(ValueError, match="bfloat16 or float32, got float16"):
        numerics_plan("float16")
