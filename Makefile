# make venv      .venv with the package and all that its tests need
# make test      ruff, mypy, pytest
# make test-all  the same with the tests marked thorough; NVRTC comes with it
# make test-oldest  the tests with the oldest versions that are promised
# make test-gpu  the tests marked gpu, with this machine's own python3
# make check-cupy  compares tests/standins/cupy_api.json with CuPy itself, which needs no GPU
# make demo      python -m lbfgs_xp demo
# make bench     every script in benchmarks/
# make docs      the site, into docs/_build/html
# make gallery   runs the examples and writes docs/gallery; QUICK=1 for less of everything
# make clean     removes what the others made

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := test
.PHONY: venv test test-all lint types unit unit-all test-oldest test-gpu check-cupy demo bench docs gallery clean

# the first interpreter of at least 3.11; PYTHON=/path/to/python overrides
find_python = for p in python3 python3.14 python3.13 python3.12 python3.11 python; do \
  if $$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then echo $$p; exit; fi; \
  done
ifeq ($(origin PYTHON),undefined)
PYTHON := $(shell $(find_python))
endif

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
WORKERS ?= 2

# libraries share the cores with the test workers; JAX says nothing about accelerators it lacks
QUIET := OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 MKL_NUM_THREADS=1 MPLBACKEND=Agg \
  JAX_PLATFORMS=cpu TF_CPP_MIN_LOG_LEVEL=3
# what JAX has compiled for one process of the tests serves the others, and the next run
CACHED := JAX_COMPILATION_CACHE_DIR="$(CURDIR)/$(VENV)/jax-cache" \
  JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES=-1 JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS=0

# Programs of JAX compile in half the time this way, in which the package compiles its own.
# `make test-all` and the oldest versions compile as users do.
SWIFT := XLA_FLAGS=--xla_cpu_use_fusion_emitters=false

# by a path that Python searches, and not by a finder of setuptools, which comes after the folder
# that Python is run in: a clone there is a folder of this name as well
EDITABLE := --config-settings editable_mode=compat -e

venv: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	@if ! "$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then \
	  echo 'lbfgs_xp needs Python 3.11 or newer; none was found. Say: make PYTHON=/path/to/python' >&2; \
	  exit 1; fi
	@test -x $(BIN)/python || "$(PYTHON)" -m venv $(VENV) || { \
	  echo 'python -m venv failed; on Debian and Ubuntu install python3-venv' >&2; \
	  rm -rf $(VENV); exit 1; }
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt $(EDITABLE) '.[test]'
	@touch $@

test: lint types unit

test-all: lint types unit-all

lint: $(STAMP)
	$(BIN)/ruff check .

types: $(STAMP)
	$(BIN)/mypy
	$(BIN)/mypy --strict tests/typing/usage.py

unit: $(STAMP)
	$(QUIET) $(CACHED) $(SWIFT) $(BIN)/python -m pytest -n $(WORKERS) tests

# what only the tests marked thorough need
$(VENV)/.thorough: $(STAMP)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt $(EDITABLE) '.[thorough]'
	@touch $@

unit-all: $(VENV)/.thorough
	$(QUIET) $(CACHED) $(BIN)/python -m pytest -n $(WORKERS) -m "" tests

# NumPy 2.0 and its contemporaries are for Python 3.11 and 3.12
find_old_python = for p in python3.11 python3.12 "$(PYTHON)"; do \
  if $$p -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 13))' 2>/dev/null; then \
  echo $$p; exit; fi; done

$(VENV)/oldest/.installed: pyproject.toml constraints.txt tests/oldest.txt
	python=$$($(find_old_python)); test -n "$$python" || { \
	  echo 'make test-oldest needs Python 3.11 or 3.12' >&2; exit 1; }; \
	"$$python" -m venv $(VENV)/oldest
	$(VENV)/oldest/bin/python -m pip install --quiet --disable-pip-version-check \
	  -c constraints.txt -c tests/oldest.txt $(EDITABLE) '.[test]'
	@touch $@

# without tests/project, which looks at the sources, the pages and the package
test-oldest: $(VENV)/oldest/.installed
	$(QUIET) $(VENV)/oldest/bin/python -m pytest -n $(WORKERS) --ignore tests/project tests

# needs NumPy, pytest, array-api-compat, array-api-extra, optree and at least one of torch, CuPy
# and JAX in that interpreter; nothing is installed. The report is build/gpu-report.md
test-gpu:
	@XLA_PYTHON_CLIENT_PREALLOCATE=false TF_CPP_MIN_LOG_LEVEL=3 "$(PYTHON)" -m tests.gpu

# CuPy and what it imports, pinned, because the list depends on the versions
CUPY := cupy-cuda12x==14.2.0 cuda-pathfinder==1.9.1 numpy==2.4.6

$(VENV)/cupy/.installed:
	"$(PYTHON)" -m venv $(VENV)/cupy
	$(VENV)/cupy/bin/python -m pip install --quiet --disable-pip-version-check --no-deps $(CUPY)
	@touch $@

# WRITE=1 writes the list
check-cupy: $(VENV)/cupy/.installed
	$(VENV)/cupy/bin/python tests/standins/read_cupy_api.py $(if $(WRITE),--write)

demo: $(STAMP)
	TF_CPP_MIN_LOG_LEVEL=3 $(BIN)/python -m lbfgs_xp demo

# the peers that the tests do not need
$(VENV)/.bench: $(STAMP)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt $(EDITABLE) '.[bench]'
	@touch $@

bench: $(VENV)/.bench
	@for script in benchmarks/[a-z]*.py; do \
	  echo "== $$script"; TF_CPP_MIN_LOG_LEVEL=3 $(BIN)/python "$$script"; \
	done

# Sphinx, its theme and MathJax
$(VENV)/.docs: $(STAMP)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt $(EDITABLE) '.[docs]'
	@touch $@

docs: $(VENV)/.docs
	PYTHONPATH="$(CURDIR)" $(QUIET) $(BIN)/python -m sphinx -W --keep-going -n -q -b html docs docs/_build/html
	@echo 'open docs/_build/html/index.html'

gallery: $(STAMP)
	PYTHONPATH="$(CURDIR)" $(QUIET) $(BIN)/python docs/figures.py
	PYTHONPATH="$(CURDIR)" $(QUIET) $(BIN)/python docs/make_gallery.py $(if $(QUICK),--quick) $(EXAMPLES)

clean:
	rm -rf $(VENV) build dist docs/_build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find lbfgs_xp tests -name __pycache__ -type d -prune -exec rm -rf {} +
