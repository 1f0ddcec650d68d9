# Start with `make demo` or `make test`; both create .venv the first time.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: help setup demo test test-slow lint types tests tensorflow-test notebooks notebooks-test kernels tiles-test sanitize install-test format docs clean

help:  ## list the targets
	@grep -E '^[a-z-]+:.*##' Makefile | sed -E 's/:.*## /\t/' | expand -t 14

setup: $(READY)  ## create .venv and install the package with its development tools

KERNELS := CMakeLists.txt backend/build_backend.py $(wildcard src/charwright/kernels/*.[ch])

$(READY): pyproject.toml constraints.txt $(KERNELS)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "charwright needs Python 3.11 or newer; set PYTHON=/path/to/python3.11")'
	$(PYTHON) -m venv $(VENV)
	PIP_CONSTRAINT=constraints.txt PIP_BUILD_CONSTRAINT=constraints.txt $(BIN)/python -m pip install --quiet --editable '.[dev]'
	@$(BIN)/charwright info --machine | grep '^kernels  '
	@touch $@

demo: $(READY)  ## train for two minutes on Python's own documentation, then generate 1,000 characters
	$(BIN)/charwright train python-docs --minutes 2 --out runs/demo --force
	$(BIN)/charwright generate runs/demo --length 1000 --temperature 0.8 --seed 7

test: lint types tests  ## lint, type checks and tests

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(READY)
	$(BIN)/mypy
	$(BIN)/mypy --platform win32 --cache-dir .mypy_cache/win32
	$(BIN)/mypy --platform darwin --cache-dir .mypy_cache/darwin

# A file's tests share fixtures, so whole files are distributed over the cores.
tests: $(READY)
	$(BIN)/pytest --numprocesses auto --dist loadfile

test-slow: $(READY)  ## run the tests that take minutes
	$(BIN)/pytest -m slow

# TensorFlow has its own environment, in which charwright is imported from its path.
TENSORFLOW := .peers/tensorflow-tests/bin/python
TENSORFLOW_READY := .peers/tensorflow-tests/.ready

$(TENSORFLOW_READY): constraints.txt
	$(PYTHON) -m venv .peers/tensorflow-tests
	PIP_CONSTRAINT=constraints.txt $(TENSORFLOW) -m pip install --quiet tensorflow-cpu==2.21.0 click platformdirs pooch safetensors
	@touch $@

tensorflow-test: $(READY) $(TENSORFLOW_READY)  ## test import from and export to TensorFlow, in its own environment
	CHARWRIGHT_TENSORFLOW=$(TENSORFLOW) $(BIN)/pytest tests/test_tensorflow.py tests/test_docs.py::test_importing_page_runs tests/test_docs.py::test_exporting_page_runs

kernels:  ## test the C kernels against plain equations, without Python
	tests/kernels/run.sh native amx

tiles-test: $(READY)  ## test the package with kernels whose tiles are emulated
	PYTEST="$(BIN)/pytest --numprocesses auto --dist loadfile" tests/kernels/run.sh emulated

sanitize:  ## test the C kernels under the address, undefined-behaviour and thread sanitizers (minutes)
	tests/kernels/run.sh address thread undefined

notebooks-test: $(READY)  ## execute the notebooks, and compare their outputs
	$(BIN)/python notebooks/assemble.py --check

notebooks: $(READY)  ## assemble the notebooks from their source, and write them with their outputs (minutes)
	$(BIN)/python notebooks/assemble.py

install-test: $(READY)  ## test the installation with a C compiler, without one, and as in the image for Docker
	$(BIN)/pytest -m slow tests/test_install.py tests/serve/test_deployment.py

format: $(READY)  ## format the code
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(READY)  ## regenerate the generated pages (command-line help, Python names, file tree)
	$(BIN)/python docs/generate.py

clean:  ## remove what was built and trained
	rm -rf $(VENV) runs build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis
