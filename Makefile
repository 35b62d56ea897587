# Everything below works in a fresh clone: the first target that needs .venv makes it.
# Another interpreter or torch:  make clean && make venv PYTHON=python3.12 TORCH=torch==2.12.0

SHELL := /bin/bash
PYTHON ?= python3 python3.13 python3.12 python3.11
TORCH ?= torch==2.13.0
JOBS ?= 2
BIN := .venv/bin
STAMP := .venv/.installed

.DEFAULT_GOAL := help
.PHONY: help venv demo readme test lint format docs clean

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-8s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

venv: $(STAMP)  ## make .venv with the pinned dependencies and this package, editable

demo: $(STAMP)  ## compress the bundled model and write the report to demo/; goes on where it was stopped
	$(BIN)/diff-es demo --out demo

# From nothing: a demo goes on with the scores in demo/journals, and this commit is to be named for its own alone.
readme: $(STAMP)  ## the demo from nothing, and its picture and tables into README.md and docs/
	rm -rf demo
	$(BIN)/diff-es demo --out demo
	$(BIN)/python benchmarks/readme.py --demo demo

test: $(STAMP)  ## lint, types, documentation and every test, slow ones included
	$(MAKE) --no-print-directory --output-sync=target -j $(JOBS) lint docs
	$(BIN)/pytest -n $(JOBS) --dist worksteal

lint: $(STAMP)  ## ruff and mypy; changes nothing
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(STAMP)  ## let ruff mend what it can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(STAMP)  ## the documentation as a site, in site/; a warning fails
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

clean:  ## remove .venv, the demo, caches and build output
	rm -rf .venv demo site build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find src tests benchmarks examples docs -name __pycache__ -type d -prune -exec rm -rf {} +

# The first interpreter that runs, is 3.11 or newer and can make a virtual environment.
USABLE := import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))

$(STAMP): pyproject.toml constraints.txt
	@if [ ! -x $(BIN)/python ]; then \
	  for python in $(PYTHON); do \
	    if "$$python" -c '$(USABLE)' >/dev/null 2>&1; then \
	      echo "making .venv with $$python ($$("$$python" -V))"; "$$python" -m venv .venv; exit; \
	    fi; \
	  done; \
	  echo 'Diff-ES needs Python 3.11 or newer with its venv module. Tried in vain: $(PYTHON).'; \
	  echo 'Install one (Debian, Ubuntu: python3 and python3-venv), or name yours: make venv PYTHON=/path/to/python'; \
	  exit 1; \
	fi >&2
	$(BIN)/python -m pip install --quiet --disable-pip-version-check \
	  -c constraints.txt '$(TORCH)' -e '.[dev,docs]'
	@touch $@
