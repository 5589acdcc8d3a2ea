# `make serve` and `make test` are the two commands that need nothing but Python 3.11 and gcc.

PYTHON ?= python3
VENV   ?= .venv
CONFIG ?= configs/quickstart.yaml

# Another build of torch: make install TORCH=torch==2.9.1 PIP_TORCH_ARGS="--index-url …"
TORCH  ?= $(shell grep '^torch==' constraints.txt)
PIP_TORCH_ARGS ?=

BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
# The installed torch, whichever it is, is held fixed for everything installed after it.
HELD := $(VENV)/constraints.txt
KERNEL_SOURCES := $(shell find kernels -name '*.cpp' -o -name '*.h' -o -name CMakeLists.txt)
CXX_FILES := $(shell find kernels/csrc -name '*.cpp' -o -name '*.h')

.PHONY: install install-dev serve test test-fast check format clean help

help:             ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

install: $(VENV)/.installed            ## the environment: torch, kernels, package, Ray
install-dev: $(VENV)/.installed-dev    ## the same with the tools for tests and checks

$(HELD):
	$(PYTHON) -m venv $(VENV)
	$(PIP) install --quiet $(PIP_TORCH_ARGS) '$(TORCH)'
	$(PIP) install --quiet 'scikit-build-core>=0.11' 'nanobind>=2.4' 'cmake>=3.26' ninja
	$(PIP) freeze | grep -E '^torch==' > $@

$(VENV)/.installed: $(HELD) pyproject.toml $(KERNEL_SOURCES)
	$(PIP) install --quiet -c $(HELD) --no-build-isolation -e '.[serve]'
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(PIP) install --quiet -c $(HELD) --no-build-isolation -e '.[serve,dev]'
	@touch $@

serve: install    ## start the quickstart (CONFIG=configs/X.yaml for another)
	@exec $(BIN)/rtp-serve serve $(CONFIG)

test: install-dev ## the whole suite
	$(BIN)/python -m pytest -n 2 -m 'not ray'
	$(BIN)/python -m pytest -m ray

test-fast: install-dev  ## the control plane alone
	$(BIN)/python -m pytest -n 2 tests/unit

check: install-dev      ## format, lint, types, import laws
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	PYTHONPATH=.:kernels $(BIN)/lint-imports
	$(BIN)/clang-format --dry-run --Werror $(CXX_FILES)

format: install-dev     ## rewrite sources in the project's format
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .
	$(BIN)/clang-format -i $(CXX_FILES)

clean:            ## remove the environment and everything built
	rm -rf $(VENV) build dist
