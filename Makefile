# Each verb makes what it needs; nothing but this checkout, Python and a package index is assumed.

.DEFAULT_GOAL := help
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DELETE_ON_ERROR:
.PHONY: help demo check test test-all bench

PYTHON ?= python3
# Two processes: most tests keep one core busy.
PYTEST_ARGS ?= -n 2
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
export PIP_DISABLE_PIP_VERSION_CHECK := 1
export PIP_NO_INPUT := 1

help: ## list the verbs
	@awk -F':.*## ' '/^[a-z-]+:.*## / { printf "make %-9s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

# The stamp is a copy of what was installed, so that a checkout that only touches the file installs
# nothing, and needs no network. pip knows dependency groups since 25.1.
$(STAMP): pyproject.toml
	if ! cmp -s $< $@; then \
	  $(PYTHON) -m venv $(VENV); \
	  $(BIN)/python -m pip install --quiet 'pip>=25.1'; \
	  $(BIN)/python -m pip install --quiet --editable '.[demo,hdf5,torch]' --group dev; \
	fi
	cp $< $@

demo: $(STAMP) ## a real network and real photographs, from images to a picture of their geometry
	$(BIN)/featurestore demo

check: $(STAMP) ## what is checked without running: style, types, layers, docstrings
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache  # its cache outlives new modules and then blames the wrong import
	$(BIN)/python -m numpydoc.hooks.validate_docstrings $$(find featurestore -name '*.py' | sort)

test: check ## check, then the tests without the slow ones
	$(BIN)/pytest $(PYTEST_ARGS)

test-all: check ## check, then every test that needs no network; GPU tests run where there is a GPU
	$(BIN)/pytest -m 'not network' $(PYTEST_ARGS)

bench: $(STAMP) ## run every benchmark
	if [ -f benchmarks/run.py ]; then exec $(BIN)/python -m benchmarks.run; fi; \
	for script in benchmarks/bench_*.py; do \
	  echo "== $$script"; $(BIN)/python -m "benchmarks.$$(basename "$$script" .py)"; \
	done
