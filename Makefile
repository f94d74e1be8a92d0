# Two commands: `make demo` shows the main job on real data, `make test` runs every check.
# Each sets up .venv first where needed; without a network, run recdistill from any environment that has it installed.

PYTHON ?= python3
BIN := .venv/bin

.DEFAULT_GOAL := help
.PHONY: help demo test clean

help:
	@echo "make demo   distil a shop's recommender from behind an API (about 5 minutes)"
	@echo "make test   ruff, mypy, pytest and doctests"
	@echo "make clean  remove .venv and what the demo left"

demo: .venv/installed
	$(BIN)/recdistill demo

# One thread for each of two processes: threads of both on the same cores wait for each other most of the time.
test: .venv/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 -q

clean:
	rm -rf .venv runs/demo

.venv/bin/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed, this is " + sys.version)'
	$(PYTHON) -m venv .venv

# The stamps say that what the two files ask for is installed; a change in either installs again.
.venv/installed: pyproject.toml constraints.txt | .venv/bin/python
	@echo "installing into .venv, which takes a minute or two ..."
	$(BIN)/python -m pip install --disable-pip-version-check -q -c constraints.txt -e .
	@touch $@

.venv/installed-dev: pyproject.toml constraints.txt | .venv/bin/python
	@echo "installing into .venv with what the checks need, which takes some minutes ..."
	$(BIN)/python -m pip install --disable-pip-version-check -q -c constraints.txt -e '.[dev]'
	@touch $@ .venv/installed
