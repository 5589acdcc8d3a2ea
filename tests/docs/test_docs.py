"""What the documents and configurations promise must exist."""

import re
from pathlib import Path

import pytest

from rtp_serve.config.parse import parse_config, read_yaml
from rtp_serve.config.serve_file import read_serve_file
from rtp_serve.config.simulation import SimulationConfig

ROOT = Path(__file__).parents[2]
SIMULATION = ROOT / "configs" / "simulation.yaml"
CONFIGS = sorted(path for path in (ROOT / "configs").glob("*.yaml") if path != SIMULATION)
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_a_shipped_configuration_parses(path: Path):
    file = read_serve_file(str(path))
    assert file.applications
    assert all(application.is_ours for application in file.applications)


def test_the_shipped_simulation_parses():
    config = parse_config(SimulationConfig, read_yaml(str(SIMULATION)))
    assert config.sweep_replicas
    assert config.search.disaggregated


def test_the_quickstart_listens_on_loopback_port_8000():
    http = read_serve_file(str(ROOT / "configs" / "quickstart.yaml")).http_options
    assert (http.host, http.port) == ("127.0.0.1", 8000)


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_every_path_a_document_names_exists(path: Path):
    named = re.findall(
        r"`((?:rtp_serve|deployments|kernels|tests|configs|docs)/[\w./*-]*)`", path.read_text()
    )
    named += re.findall(r"\]\(((?:docs|CONTRIBUTING)[\w./]*)\)", path.read_text())
    missing = [name for name in named if "X" not in name and not list(ROOT.glob(name.rstrip("/")))]
    assert not missing


def test_the_makefile_has_the_commands_the_readme_names():
    makefile = (ROOT / "Makefile").read_text()
    named = set(re.findall(r"make ([a-z-]+)", (ROOT / "README.md").read_text()))
    assert named
    assert all(re.search(rf"^{name}:", makefile, re.MULTILINE) for name in named)
