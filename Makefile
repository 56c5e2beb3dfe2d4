# Each target sets up what it needs in .venv: Python 3.11 or newer and make suffice.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test test-all test-paper test-device smoke docs check clean

demo: .venv/installed
	$(BIN)/flowattn run topic-words --out demo

test: .venv/tested
	$(BIN)/python -m pytest

test-all: .venv/tested
	$(BIN)/python -m pytest -m "not paper"

# The numbers of papers at their sizes: half a minute or more each.
test-paper: .venv/tested
	$(BIN)/python -m pytest -m paper

# What is of interest on a GPU or TPU. Four processes share a GPU's memory, of which none
# takes three quarters at once; plugins from elsewhere may open the device themselves.
test-device: .venv/tested
	PYTEST_DISABLE_PLUGIN_AUTOLOAD=1 XLA_PYTHON_CLIENT_PREALLOCATE=false \
	$(BIN)/python -m pytest -p xdist -n 4 -m "device and not slow" tests

# A wheel in an empty environment.
smoke:
	rm -rf build/smoke
	$(PYTHON) -m venv build/smoke
	build/smoke/bin/python -m pip install --quiet .
	build/smoke/bin/flowattn --version
	build/smoke/bin/flowattn run focus --reduced --t1 100 --out build/smoke/run

docs: .venv/tested
	$(BIN)/mkdocs build --strict

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
