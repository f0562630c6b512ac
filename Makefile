# `make demo` and `make test` set up everything that they need in .venv.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
RUN    := $(VENV)/.runtime-installed
DEV    := $(VENV)/.tests-installed

.PHONY: help setup demo test check format benchmark bench clean

help:
	@echo "make demo       separate the example session's clip and render its stems as new tracks"
	@echo "make test       checks, then the whole test suite"
	@echo "make check      format, lint, types, import contracts"
	@echo "make format     let ruff format and mend what it can"
	@echo "make benchmark  speed and memory of the main job on this machine"
	@echo "make bench      the same beside the public Demucs package, as ratios (half an hour)"
	@echo "make clean      remove what make made"

setup: $(RUN)

$(BIN)/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Stembridge needs Python 3.11 or newer: make PYTHON=python3.11")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip

$(RUN): pyproject.toml constraints.txt | $(BIN)/python
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[demo]'
	@touch $@

$(DEV): pyproject.toml constraints.txt | $(BIN)/python
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[demo,train,test,check]'
	$(BIN)/python -m pip install --quiet --no-deps pyfluidsynth
	@touch $@ $(RUN)

demo: $(RUN)
	$(BIN)/python -P examples/demo.py

check: $(DEV)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(DEV)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

test: check
	$(BIN)/pytest

benchmark: $(DEV)
	$(BIN)/python -P examples/benchmark.py

bench: $(DEV)
	$(BIN)/python -P examples/compare.py $(BENCH)

clean:
	rm -rf $(VENV) demo-output build dist
