# Each target sets up what it needs in .venv: Python 3.11 or newer and make suffice.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test test-all check clean

demo: .venv/installed
	$(BIN)/flowattn run topic-words --out demo

test: .venv/tested
	$(BIN)/python -m pytest

test-all: .venv/tested
	$(BIN)/python -m pytest -m "slow or not slow"

check: .venv/tested
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/basedpyright

clean:
	rm -rf .venv demo

.venv/installed: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --editable .
	touch $@

.venv/tested: .venv/installed
	$(BIN)/python -m pip install --quiet --editable '.[test]'
	touch $@
