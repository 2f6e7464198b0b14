# `make demo` and `make test` do all the set-up themselves, in $(VENV).
# A second Python stack: make test PYTHON=python3.13 VENV=.venv313

# The first Python that is new enough and can make a virtual environment.
PYTHON ?= $(shell for p in python3.11 python3 python3.13 python3.12; do \
	$$p -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1 \
	&& echo $$p && break; done)
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check
# Passed on to pytest, as in: make pytest ARGS="tests/optim -x"
ARGS ?=
# Processes of pytest; 0 runs all tests in its own, which debuggers need.
WORKERS ?= 2

# XLA's thread pool; the tests compare bitwise between runs with the same value.
export NPROC ?= 2
# pyright comes bundled in its wheel: don't ask the network for a newer one.
export PYRIGHT_PYTHON_IGNORE_WARNINGS := 1

.PHONY: help demo demo-2proc finetune test check format pytest devices slow parity docs build clean
.NOTPARALLEL:
.DEFAULT_GOAL := help

help:
	@echo "make demo    install into $(VENV), train the default run, print its metrics"
	@echo "make demo-2proc  train in two processes of this machine, compare with one"
	@echo "make finetune  compare ways of fine-tuning on the same data, print a table"
	@echo "make test    everything that must pass: check, pytest with doctests, docs"
	@echo "make check   format, lint and types only"
	@echo "make format  rewrite the files in the house style"
	@echo "make devices the tests on eight CPU devices; part of make test"
	@echo "make slow    the tests that take minutes"
	@echo "make parity  measure every optimizer against optax, write docs/parity.md (half an hour)"
	@echo "make docs    build docs/_build/html"
	@echo "make build   wheel and sdist in dist/"

$(BIN)/python:
	@test -n "$(PYTHON)" || { echo "no Python >= 3.11 with venv found; pass PYTHON=/path/to/python" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)

# The stamps make a second call fast; a changed pyproject.toml installs again.
$(VENV)/installed: pyproject.toml | $(BIN)/python
	$(PIP) --editable '.[view]'
	@touch $@

$(VENV)/installed-test: pyproject.toml | $(BIN)/python
	$(PIP) --editable '.[test]'
	@touch $@ $(VENV)/installed

$(VENV)/installed-build: pyproject.toml | $(BIN)/python
	$(PIP) build
	@touch $@

demo: $(VENV)/installed
	$(BIN)/python -m tasks.digits

demo-2proc: $(VENV)/installed
	$(BIN)/python -m tasks.digits_in_processes

finetune: $(VENV)/installed
	$(BIN)/python -m tasks.finetune_digits

test: check pytest devices docs

check: $(VENV)/installed-test
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright --pythonpath $(BIN)/python

format: $(VENV)/installed-test
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

pytest: $(VENV)/installed-test
	$(BIN)/python -m pytest -n $(WORKERS) --dist worksteal $(ARGS)

# In a process of its own: the number of devices is fixed when a backend starts.
devices: $(VENV)/installed-test
	DEVICES=8 NPROC=8 $(BIN)/python -m pytest -n $(WORKERS) --dist worksteal tests/devices $(ARGS)

# Sets XLA_FLAGS, if to nothing: conftest.py then leaves it alone, and programs are a user's.
slow: $(VENV)/installed-test
	XLA_FLAGS="$$XLA_FLAGS" $(BIN)/python -m pytest -m slow $(ARGS)
	DEVICES=8 NPROC=8 XLA_FLAGS="$$XLA_FLAGS" $(BIN)/python -m pytest -m slow tests/devices $(ARGS)

parity: $(VENV)/installed-test
	$(BIN)/python -m tests.parity.report

docs: $(VENV)/installed-test
	$(BIN)/python -m sphinx -b html -W --keep-going -q docs docs/_build/html

build: $(VENV)/installed-build
	$(BIN)/python -m build

clean:
	rm -rf $(VENV) docs/_build dist build
